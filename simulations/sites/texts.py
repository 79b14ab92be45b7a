"""What stands in the folders that `umbel federate init` writes: settings with a word each, a README of ten lines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping


def server_settings(federation: str, port: int, control_port: int) -> str:
    """Return `server.yaml`."""
    return f"""\
# What `umbel federate serve` starts.
federation: "{federation}"
listen: 0.0.0.0:{port}          # where sites connect to; the only port that the network needs to let in
control_port: {control_port}             # on this machine's loopback alone: who reaches it has runs run
database: state/superlink.db   # the keys and runs that the server remembers
results: results               # a folder for each run
log_megabytes: 20
log_files: 5
"""


def site_settings(name: str, federation: str, server: str, clients: str) -> str:
    """Return `site.yaml`."""
    return f"""\
# What `umbel federate join` starts.
name: "{name}"
federation: "{federation}"
server: "{server}"
clients: "{clients}"
data: ""           # your data file (docs/federation/own-data.md); empty takes the experiment's data set
device: ""         # such as cuda:0; empty leaves it to the experiment
state: state       # memory of your clients, and the code of runs
log_megabytes: 20
log_files: 5
"""


def submit_settings(name: str, federation: str, ssh: str, control_port: int) -> str:
    """Return `submit.yaml`."""
    return f"""\
# How `umbel federate submit` reaches the server.
name: "{name}"
federation: "{federation}"
ssh: "{ssh}"       # what you would give to ssh; keys and jump hosts belong into ~/.ssh/config
control_port: {control_port}
results: ""        # the runs' folder on the server, to pull and stop runs that were submitted elsewhere
"""


def trusted(keys: Mapping[str, str]) -> str:
    """Return `trusted.yaml`: those whose signed runs a site takes."""
    head = "# Whose runs this site takes: names and public keys. Take a line out, and that person's runs are refused.\n"
    lines = [f'"{name}": |\n' + textwrap.indent(key, "  ") for name, key in keys.items()]
    return head + ("".join(lines) or "{}\n")


def policy() -> str:
    """Return `policy.yaml`, with what a careful site would say in comments."""
    return """\
# What this site lets run. Without a list, all is allowed. Read again when it changes; a run that it refuses is
# named to the server, and nothing of it is unpacked.
own_code: false        # whether an experiment may name code by its import path (module:name)
max_age_days: 7        # how long after it was signed a run may come
# experiments: [digits, fashion_cvt]
# strategies: [fedavg, fedprox]
# models: [cnn, cvt_tiny32]
# data: [digits]
# data_keys: [name, num_clients, partition, alpha]
# max_rounds: 100
# bundles: [SHA-256 of code that you have read; `umbel federate bundle FOLDER` prints it]
"""


def authority_settings(federation: str, hosts: list[str], port: int) -> str:
    """Return `authority.yaml`."""
    names = ", ".join(f'"{host}"' for host in hosts)
    return f'federation: "{federation}"\nserver: [{names}]\nport: {port}\n'


def readme_server(federation: str, address: str) -> str:
    """Return the README of the server's folder."""
    return f"""\
# The server of the federation {federation}

1. Keep this folder on the server, for its owner alone (mode 700). `server.key` is secret; all else may be read.
2. Start: `umbel federate serve .` (with `--background`, it goes on after you leave). Stop: `umbel federate down .`
3. Sites connect to {address} (TCP, TLS). Let that port in; nothing else has to be reachable.
4. The control port listens on loopback only. Who submits runs reaches it through SSH: give them an account here.
5. Who takes part stands in `sites.yaml`; `umbel federate admit` and `revoke` change it while the server is up.
6. How it is: `umbel federate status .` and `umbel federate logs . -f`.
7. Runs are in `results/`, what the server remembers in `state/`. Back up both, and `sites.yaml`.
8. The certificate is good for a year: `umbel federate renew` (where the authority's folder is), then copy
   `server.pem` and `server.key` here: the key is new as well.
"""


def readme_site(name: str, federation: str, has_key: bool) -> str:
    """Return the README of a site's folder."""
    key = (
        "`site.key` is who you are: secret, mode 600, never sent. If it may be known, ask the server to revoke it."
        if has_key
        else "Put these files beside your `site.key`, which `umbel federate init --site` made. Never send the key."
    )
    return f"""\
# {name}, a site of the federation {federation}

1. {key}
2. Start: `umbel federate join .` (with `--background`, it goes on after you leave). Stop: `umbel federate down .`
3. The node connects outwards, to the server in `site.yaml` (TCP, TLS, checked against `ca.pem`). It opens no port.
4. Whose runs you take stands in `trusted.yaml`, which runs in `policy.yaml`: yours to change, also while it runs.
5. Your data stay here: set `data` in `site.yaml`, and look at what would be sent:
   `umbel federate join . EXPERIMENT --dry-run`.
6. What leaves: what a run's strategy sends (models, statistics), its metrics, and the number of your examples.
7. How it is: `umbel federate status .` and `umbel federate logs . -f`.
8. The clock must be right: the server takes one that is 5 s ahead or 5 minutes behind.
"""


def readme_submitter(name: str, federation: str) -> str:
    """Return the README of a submitter's folder."""
    return f"""\
# {name}, who submits runs to the federation {federation}

1. `{name}.key` signs your runs: secret, mode 600, never sent. Sites check it against the key that they trust.
2. Set `ssh` in `submit.yaml`: you need an account on the server. An SSH tunnel is made for each command.
3. Submit: `umbel federate submit digits strategy.name=fedprox --to .` It shows the run, and ends as the run ends.
4. Ctrl-C leaves the run running. Follow it: `umbel federate logs . RUN -f`. End it: `umbel federate stop RUN --to .`
5. Fetch it: `umbel federate pull RUN --to .` Go on with it: `umbel federate submit --resume RUN --to .`
6. How it is: `umbel federate status .`
"""


def readme_request(name: str) -> str:
    """Return the README of a folder that waits to be admitted."""
    return f"""\
# {name}: not yet admitted

1. Send `request.yaml` to whoever keeps the federation's authority. It has the public half of your key, nothing secret.
2. Read them the key's name, as `umbel federate init` printed it, over another channel, such as a telephone.
3. They run `umbel federate admit` and send a folder back. Copy its files into this one.
"""
