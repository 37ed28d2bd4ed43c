"""`gpu-agent registry page`: where the fleet page is, and a link that signs a browser in."""

from urllib.parse import urlsplit

from gpu_agent.cli.client.discovery import is_this_machine
from gpu_agent.cli.client.http import Api, request_options
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration
from gpu_agent.cli.output.text import print_json
from gpu_agent.wire.api import SignInLink


def declare_page() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Print the address of the fleet page. On the registry's own machine it is a link that signs a "
        "browser in, once and within five minutes, with the role of the token that this command uses.",
        example="gpu-agent registry page",
        exits={ExitCode.OK: "printed"},
        params=[*request_options(json_is="what POST /v1/sign-in-links answers")],
    )


def run_page(arguments: Arguments) -> int:
    """Ask for a link where it would work, and print."""
    api = Api.of(arguments)
    if arguments.json:
        print_json(api.post("/v1/sign-in-links", {}, SignInLink).document)
    elif is_this_machine(urlsplit(api.url).hostname or ""):
        print(page_url(api))
    else:
        print(f"{api.url}/\nSign in there with an operator token.")
    return ExitCode.OK


def page_url(api: Api) -> str:
    """Return a link that signs a browser of this machine in; raises `Failure`."""
    return api.url + api.post("/v1/sign-in-links", {}, SignInLink).model.path


COMMANDS: Commands = {
    "page": (declare_page, run_page),
}
