# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia token …`: join tokens, by which devices enrol."""

from typing import Annotated

import typer

from fed_sophia.commands.asking import ask
from fed_sophia.options import DEFAULT_SERVER, JsonLines, OperatorKeyFile, Server, duration_s
from fed_sophia.output import output_for
from fed_sophia.trust_options import NO_CHOICE
from protocol.messages import JoinTokenRequest, Role, parse
from worker.options import Trust

EXAMPLES = """\b
Examples:
  fed-sophia token create --uses 10 --expires 7d
  fed-sophia token create --role evaluator --label lab-gpu
"""


def create(
    uses: Annotated[int, typer.Option(help="How many workers may enrol with it.")] = 1,
    expires: Annotated[str, typer.Option(help="How long it may be used: 90s, 10m, 24h, 7d.")] = "24h",
    role: Annotated[
        Role, typer.Option(help="What those workers may do; evaluators measure, and send no update.")
    ] = Role.TRAINER,
    label: Annotated[str, typer.Option(help="A word to know it by.")] = "default",
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Make a join token. It is shown this once; the server keeps only a hash of it."""
    request = parse(
        JoinTokenRequest,
        {"uses": uses, "expires_s": round(duration_s(expires, "--expires")), "role": role, "label": label},
    )
    issued = ask(server, operator_key_file, trust, lambda client: client.create_token(request))
    output_for(json_lines).summary(
        f"{issued.join_token}\n\nShown this once: {issued.uses} {issued.role.value}(s) may enrol with it for "
        f"{expires}. On each device:\n"
        f"  FED_SOPHIA_JOIN_TOKEN=… fed-sophia worker --server {server} --task TASK",
        issued.model_dump(mode="json"),
    )
