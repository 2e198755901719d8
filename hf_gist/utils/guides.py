"""Where the guides are, for error messages and `--help`."""

FOLDER = "recipes/guides"
"""In the repository; an installed package has no guides."""


def guide(page: str, heading: str | None = None) -> str:
    """The path of a guide in the repository, such as `recipes/guides/errors.md#packed-rows`.

    Args:
        page (`str`): name of the file without its ending.
        heading (`str`, *optional*): anchor of a heading on that page. A test checks that both exist.
    """
    return f"{FOLDER}/{page}.md" + (f"#{heading}" if heading else "")
