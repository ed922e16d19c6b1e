"""The history's URL, told without what is secret in it."""

from sqlalchemy import URL

_SECRET = "pass"  # noqa: S105 - in the names of options: password, sslpassword


def shown(url: URL) -> str:
    """Return where a database is: no password, and no options, which may hold one."""
    return url.set(query={}).render_as_string(hide_password=True)


def hidden(text: str, url: URL) -> str:
    """Return a text in which no password of a URL is left."""
    values = [url.password, *(value for key, value in url.query.items() if _SECRET in key)]
    for value in values:
        for secret in (value,) if isinstance(value, str) else value or ():
            if secret:
                text = text.replace(secret, "***")
    return text
