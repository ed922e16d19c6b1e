"""Read settings from `PCM_...` variables, a `.env` file or files in /run/secrets."""

import os
import re
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
_FOR_GROUP = re.compile(r"[A-Za-z0-9_-]+=")
ENV_FILE = Path(".env")
"""The file of settings in the current folder; it is read if only this user can write to it."""
_URL_FORMAT = "must be like amqp://USER:PASSWORD@HOST:5672/"


class WrongSetting(PcmError, ValueError):
    """A setting is wrong; the message names it."""


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


OptionalPath = Annotated[Path | None, BeforeValidator(_none_if_empty)]
"""A file or folder; None if the setting is empty."""


def _url(text: str) -> "URL":
    from yarl import URL  # `--help` works without it

    return URL(text)


class BrokerSettings(BaseModel):
    """Settings of the broker. Each field is an environment variable `PCM_...`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
        defer_build=True,  # a program uses one of these classes
    )

    amqp_url: tuple[str, ...] = Field(
        default=("amqp://guest:guest@localhost:5672/",),
        repr=False,  # it has a password
        description="the broker's URL; several, comma-separated, are tried in turn; amqps:// for"
        " TLS",
    )
    tls_ca: Path | None = Field(
        default=None,
        description="file of the authorities that certify an amqps broker, PEM"
        " (default: the system's)",
    )
    tls_cert: Path | None = Field(
        default=None,
        description="file of our certificate for an amqps broker, PEM; it is the login if the URL"
        " has no password",
    )
    tls_key: Path | None = Field(
        default=None,
        description="file of the certificate's key, PEM (default: in the certificate's file)",
    )

    def __init__(self, **values: Any) -> None:
        """Read the fields that are not given from the environment."""
        super().__init__(**_environment(type(self)) | values)

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
                is_wrong = url.scheme not in {"amqp", "amqps"} or not url.host
                _ = url.port  # parsed on access
            except ValueError:
                is_wrong = True
            if is_wrong:
                raise ValueError(_URL_FORMAT)
            # Else a part of the password is read, and shown, as the port or the host.
            if url.fragment or "@" in f"{url.path}{url.query_string}":
                raise ValueError(
                    f"{_URL_FORMAT}, with / # ? @ : of a password as %2F %23 %3F %40 %3A"
                )
        if not urls:
            raise ValueError(f"is empty: {_URL_FORMAT}")
        if len({_url(text).scheme for text in urls}) > 1:
            raise ValueError(
                "has amqp:// and amqps:// addresses: an attacker who blocks amqps:// could listen"
                " on amqp://; use one scheme for all"
            )
        return urls

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
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
    """Settings of the broker and its management API."""

    management_url: str = Field(
        default="",
        description="RabbitMQ's management API, such as https://USER:PASSWORD@HOST:15671 (default:"
        " the first broker's host and login, port 15672, or 15671 with TLS)",
    )

    @field_validator("management_url")
    @classmethod
    def _http(cls, text: str) -> str:
        try:
            url = _url(text)
        except ValueError:
            url = _url("")
        if text and (url.scheme not in {"http", "https"} or not url.host):
            raise ValueError("must be like https://USER:PASSWORD@HOST:15671")
        return text


class DispatcherSettings(BrokerSettings):
    """Settings of a dispatcher."""

    patience: Duration = Field(
        default=timedelta(seconds=10),
        description="how long to retry an unreachable broker",
    )
    settle: Duration = Field(
        default=timedelta(seconds=2),
        description="how long to wait for further workstations after all known ones have ended",
    )
    signing_key: OptionalPath = Field(
        default=None, description="file of the private key that signs jobs and orders"
    )
    trusted_keys: OptionalPath = Field(
        default=None,
        description="folder of the public keys that signatures are checked against",
    )
    points: tuple[str, ...] = Field(
        default=(),
        repr=False,  # it may have a password
        description="distribution points of packages, comma-separated; the first that has a package"
        " serves it: a folder, https://HOST/PATH, or s3://BUCKET/PATH; those with GROUP= before"
        " them are for agents",
    )
    approvals: int = Field(
        default=0,
        ge=0,
        le=3,
        description="the agents' PCM_APPROVALS: nothing is signed again if a job needs several"
        " signatures",
    )

    @field_validator("points", mode="before")
    @classmethod
    def _split_points(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(one for one in value.replace(",", " ").split() if not _FOR_GROUP.match(one))


def state_folder() -> Path:
    """Return the folder for what the administrator's program remembers: ~/.local/state/pcm."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pcm"


def _history_url() -> str:
    return f"sqlite:///{state_folder()}/history.db"


class HistorySettings(DispatcherSettings):
    """Settings of a dispatcher and the history."""

    history_url: str = Field(
        default_factory=_history_url,
        repr=False,  # it may have a password
        description="the history's database: sqlite:///FILE, or postgresql://USER@HOST/DATABASE"
        " (default: ~/.local/state/pcm/history.db)",
    )
    history_keep: Duration = Field(
        default=timedelta(days=365), description="how long the history keeps a job"
    )


Settings = TypeVar("Settings", bound=BrokerSettings)


def load(kind: type[Settings], **options: Any) -> Settings:
    """Read the settings of a class; options that are not None override all other sources.

    Raises:
        WrongSetting: a setting is wrong.
    """
    options = {name: value for name, value in options.items() if value is not None}
    try:
        return kind(**_secrets(kind) | _env_file(kind) | _environment(kind) | options)
    except ValidationError as error:
        field, _, text = explain(error).partition(":")
        raise WrongSetting(f"PCM_{field.upper()}:{text}") from error


def _select(kind: type[BrokerSettings], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a class's fields from `PCM_...` names, in any case."""
    named = {name.lower(): value for name, value in variables.items()}
    values = ((field, named.get(f"pcm_{field}")) for field in kind.model_fields)
    return {field: value for field, value in values if value is not None}


def _environment(kind: type[BrokerSettings]) -> dict[str, Any]:
    return _select(kind, os.environ)


def _env_file(kind: type[BrokerSettings]) -> dict[str, Any]:
    return _select(kind, read_env_file() or {})


def read_env_file() -> Mapping[str, str | None] | None:
    """Return the values in the `.env` file of the current folder; None if it is not ours.

    Raises:
        WrongSetting: the file cannot be read.
    """
    if (file := _own_file(ENV_FILE)) is None:
        return None
    from dotenv import dotenv_values  # rarely needed

    try:
        with os.fdopen(file, encoding="utf-8") as stream:
            return dotenv_values(stream=stream)
    except UnicodeDecodeError as error:
        raise WrongSetting(f"{ENV_FILE}: is not UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise WrongSetting(f"{ENV_FILE}: cannot be read: {error.strerror}") from error


def _secrets(kind: type[BrokerSettings]) -> dict[str, Any]:
    """Return the settings of /run/secrets, one a file."""
    try:
        files = _select(kind, {file.name: file for file in _SECRETS.iterdir()})
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
    """Open a regular file that only its owner, this user, can write; else return None.

    The checks are made on the open file, which is not a link, so it cannot be exchanged in between.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(path, flags)
    except OSError:
        return None
    status = os.fstat(file)
    is_regular = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    if is_regular and status.st_uid == os.geteuid() and not status.st_mode & 0o022:
        return file
    os.close(file)
    return None


def describe(*kinds: type[BrokerSettings]) -> str:
    """Return the settings of classes for `--help`: one line each, with the default."""
    lines = ["settings (environment, your .env file, or files in /run/secrets):"]
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    for name, field in fields.items():
        text = field.description or ""
        if "(default: " not in text:
            text += f" (default: {_format(field.default)})"
        lines.append(f"  PCM_{name.upper():<17} {text}")
    return "\n".join(lines)


def _format(value: Any) -> str:
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value) or "none"
