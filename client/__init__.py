"""The client's side: the ClientApp, its participants, and a SuperNode process that stays warm."""
