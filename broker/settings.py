"""Settings: `PCM_...` variables, a `.env` file, or files in /run/secrets."""

import os
import stat
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas import explain
from schemas.errors import PcmError
from schemas.times import Duration, duration_text

if TYPE_CHECKING:
    from yarl import URL

_SECRETS = Path("/run/secrets")
_ENV_FILE = Path(".env")
_SUCH_AS = "must be such as amqp://USER:PASSWORD@HOST:5672/"


class WrongSetting(PcmError, ValueError):
    """A setting is wrong; the text names it."""


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


OptionalPath = Annotated[Path | None, BeforeValidator(_none_if_empty)]
"""A file or folder; none where the setting is empty."""


def _url(text: str) -> "URL":
    from yarl import URL  # who only tells what settings there are does not load it

    return URL(text)


class BrokerSettings(BaseModel):
    """How to reach the broker. Each field is an environment variable `PCM_...`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
        defer_build=True,  # a program has one of the kinds
    )

    amqp_url: tuple[str, ...] = Field(
        default=("amqp://guest:guest@localhost:5672/",),
        repr=False,  # it has a password
        description="where the broker is; several, parted by commas, are tried in turn;"
        " amqps:// for TLS",
    )
    tls_ca: Path | None = Field(
        default=None,
        description="file of the authorities that vouch for an amqps broker, PEM"
        " (default: the system's)",
    )
    tls_cert: Path | None = Field(
        default=None,
        description="file of our certificate for an amqps broker, PEM; it is the login where the"
        " URL has no password",
    )
    tls_key: Path | None = Field(
        default=None,
        description="file of the certificate's key, PEM (default: in the certificate's file)",
    )

    def __init__(self, **given: Any) -> None:
        """Take what is given, and the rest from the environment."""
        super().__init__(**_environment(type(self)) | given)

    @field_validator("amqp_url", mode="before")
    @classmethod
    def _split_urls(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("amqp_url")
    @classmethod
    def _amqp(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for text in urls:
            try:
                url = _url(text)
                wrong = url.scheme not in {"amqp", "amqps"} or not url.host
                _ = url.port  # which is read only now
            except ValueError:
                wrong = True
            if wrong:
                raise ValueError(_SUCH_AS)
            # Else a part of the password goes for a port, or a host, and is told as one.
            if url.fragment or "@" in f"{url.path}{url.query_string}":
                raise ValueError(f"{_SUCH_AS}, with / # ? @ : of a password as %2F %23 %3F %40 %3A")
        if not urls:
            raise ValueError(f"is empty: {_SUCH_AS}")
        if len({_url(text).scheme for text in urls}) > 1:
            raise ValueError(
                "has amqp:// and amqps:// addresses: whoever keeps us from the one could listen on"
                " the other; write all of a kind"
            )
        return urls

    @model_validator(mode="after")
    def _verified(self) -> Self:
        from broker import tls

        try:
            for text in self.amqp_url:
                tls.check_url(_url(text), has_certificate=self.tls_cert is not None)
        except ValueError as error:
            raise ValueError(f"amqp_url: {error}") from None
        if any(_url(text).scheme == "amqps" for text in self.amqp_url):
            tls.context(self.tls_ca, self.tls_cert, self.tls_key)
        else:
            for field in ("tls_ca", "tls_cert", "tls_key"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{field}: is for TLS, and PCM_AMQP_URL has no amqps://")
        return self

    @property
    def virtual_host(self) -> str:
        """The broker's virtual host."""
        return _url(self.amqp_url[0]).path[1:] or "/"


class ManagementSettings(BrokerSettings):
    """How to reach the broker, and its management API."""

    management_url: str = Field(
        default="",
        description="RabbitMQ's management API, such as https://USER:PASSWORD@HOST:15671 (default:"
        " the first broker's host and login, port 15672, or 15671 where it speaks TLS)",
    )

    @field_validator("management_url")
    @classmethod
    def _http(cls, text: str) -> str:
        try:
            url = _url(text)
        except ValueError:
            url = _url("")
        if text and (url.scheme not in {"http", "https"} or not url.host):
            raise ValueError("must be such as https://USER:PASSWORD@HOST:15671")
        return text


class DispatcherSettings(BrokerSettings):
    """A dispatcher's settings."""

    patience: Duration = Field(
        default=timedelta(seconds=10),
        description="how long an unreachable broker is tried before giving up",
    )
    settle: Duration = Field(
        default=timedelta(seconds=2),
        description="how long to listen for more workstations after all known ones have ended",
    )
    signing_key: OptionalPath = Field(
        default=None, description="the file of the private key that signs what is sent"
    )
    trusted_keys: OptionalPath = Field(
        default=None,
        description="the folder of public keys by which signatures of what was sent are checked",
    )


def _history_url() -> str:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return f"sqlite:///{state}/pcm/history.db"


class HistorySettings(DispatcherSettings):
    """A dispatcher's settings, and the history's."""

    history_url: str = Field(
        default_factory=_history_url,
        repr=False,  # it may have a password
        description="the history's database: sqlite:///FILE, or postgresql://USER@HOST/DATABASE"
        " (default: ~/.local/state/pcm/history.db)",
    )
    history_keep: Duration = Field(
        default=timedelta(days=365), description="how long the history remembers a job"
    )


Settings = TypeVar("Settings", bound=BrokerSettings)


def load(kind: type[Settings], **options: Any) -> Settings:
    """Read the settings of a kind; options that are not None come before all else.

    Raises:
        WrongSetting: one of them is wrong.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return kind(**_secrets(kind) | _env_file(kind) | _environment(kind) | given)
    except ValidationError as error:
        field, _, text = explain(error).partition(":")
        raise WrongSetting(f"PCM_{field.upper()}:{text}") from error


def _of(kind: type[BrokerSettings], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kind's settings among what was found under names as variables have them."""
    named = {name.lower(): value for name, value in found.items()}
    values = ((field, named.get(f"pcm_{field}")) for field in kind.model_fields)
    return {field: value for field, value in values if value is not None}


def _environment(kind: type[BrokerSettings]) -> dict[str, Any]:
    return _of(kind, os.environ)


def _env_file(kind: type[BrokerSettings]) -> dict[str, Any]:
    """Return what the folder's own file sets."""
    if (file := _own_file(_ENV_FILE)) is None:
        return {}
    from dotenv import dotenv_values  # most have no such file

    try:
        with os.fdopen(file, encoding="utf-8") as stream:
            return _of(kind, dotenv_values(stream=stream))
    except UnicodeDecodeError as error:
        raise WrongSetting(f"{_ENV_FILE}: is not UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise WrongSetting(f"{_ENV_FILE}: cannot be read: {error.strerror}") from error


def _secrets(kind: type[BrokerSettings]) -> dict[str, Any]:
    """Return what files set, each a setting of its name."""
    try:
        files = _of(kind, {file.name: file for file in _SECRETS.iterdir()})
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise WrongSetting(f"{_SECRETS}: cannot be read: {error.strerror}") from error
    return {field: _secret(field, file) for field, file in files.items()}


def _secret(field: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        text = "is not UTF-8"
        raise WrongSetting(f"{_SECRETS}: PCM_{field.upper()}: {text}") from error
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        raise WrongSetting(f"{_SECRETS}: PCM_{field.upper()}: {text}") from error


def _own_file(path: Path) -> int | None:
    """Open a file if it is our own: who else may write here must not set our settings.

    Once, and by no link: what is looked at is what is read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(path, flags)
    except OSError:
        return None
    found = os.fstat(file)
    plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    if plain and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
        return file
    os.close(file)
    return None


def describe(*kinds: type[BrokerSettings]) -> str:
    """Return the settings of kinds for a help text: a name, its meaning and its default a line."""
    lines = ["settings (environment, a .env file of one's own, or files in /run/secrets):"]
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    for name, field in fields.items():
        text = field.description or ""
        if "(default: " not in text:
            text += f" (default: {_plain(field.default)})"
        lines.append(f"  PCM_{name.upper():<17} {text}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value) or "none"
