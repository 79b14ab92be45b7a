"""Sites with data of their own: what a site's file says, what it holds, and what all agree on."""
