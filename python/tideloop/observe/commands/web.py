"""``tideloop web``: has a running program open its web page, and prints the address."""

from __future__ import annotations

from tideloop.observe.commands.console import OK, Parser, client_of, command

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the command; returns 0 if there is a page."""
    return command("web", _web, argv)


def _web(argv: list[str]) -> int:
    parser = Parser(
        "web",
        "Has an observed program serve its web page on 127.0.0.1, if it does not yet, and prints the address with the "
        "token that opens it.",
        "never",
        json=False,
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser, too")
    asked = parser.parse_args(argv)
    with client_of(asked.pid) as client:
        url = client.web()
    print(url)
    if asked.open:
        import webbrowser

        webbrowser.open(url)
    return OK
