"""Show the history's URL without its secrets."""

from sqlalchemy import URL

_SECRET = "pass"  # noqa: S105 - in the names of options: password, sslpassword


def shown(url: URL) -> str:
    """Return a database's URL without the password and the options, which can contain one."""
    return url.set(query={}).render_as_string(hide_password=True)


def hidden(text: str, url: URL) -> str:
    """Return a text with the passwords of a URL replaced."""
    values = [url.password, *(value for key, value in url.query.items() if _SECRET in key)]
    for value in values:
        for secret in (value,) if isinstance(value, str) else value or ():
            if secret:
                text = text.replace(secret, "***")
    return text
