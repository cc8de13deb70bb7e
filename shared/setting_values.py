"""Which values each setting may have, and which settings do not go together.

`Settings` reads its values by these rules, and `bootstrap` holds the environment against them while the app is indexed,
so both say the same in the same words, and never show a value. Only the standard library is imported: pydantic would
more than double the time of indexing, and each dataclass would add half a millisecond to it.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from shared.workspace_hosts import is_azure, workspace_name

UNRESOLVED = {
    "@Microsoft.KeyVault(": "a Key Vault reference that was not resolved: the secret must exist, and the app's identity"
    " needs the role Key Vault Secrets User on the vault",
    "@Microsoft.AppConfiguration(": "an App Configuration reference that was not resolved: the key must exist, and the"
    " app's identity needs the role App Configuration Data Reader on the store",
}
"""How the text begins that Azure leaves in place of a value that it could not fetch, and what that is."""

LONGEST_SECONDS = 24 * 3600
LONGEST_MINUTES = 7 * 24 * 60
LONGEST_HOURS = 365 * 24
LONGEST_DAYS = 10 * 365
"""Far more than anybody needs, and far less than what a date can be moved by."""


class Rule(Protocol):
    """What a value may be."""

    def read(self, value: object) -> object:
        """The value as the settings hold it, from a text or from what was given in code. Raises ValueError."""
        ...


class Number(NamedTuple):
    """A number from `low` to `high`; with `above` it must be more than `low`, with `whole` it has no fraction."""

    low: int
    high: int | None = None
    above: bool = False
    whole: bool = False

    def read(self, value: object) -> object:
        number = self._number(value)
        too_low = number is None or number < self.low or (self.above and number == self.low)
        if number is None or too_low or (self.high is not None and number > self.high):
            raise ValueError(f"must be {self._allowed()}")
        return number

    def _number(self, value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        try:
            number = int(value.removesuffix(".0")) if isinstance(value, str) and self.whole else float(value)
        except (ValueError, OverflowError):
            return None
        return number if math.isfinite(number) and (not self.whole or number == int(number)) else None

    def _allowed(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{kind} above {self.low}" + (f" and up to {self.high}" if self.high is not None else "")
        return f"{kind} from {self.low} to {self.high}" if self.high is not None else f"{kind}, {self.low} or more"


class Choice(NamedTuple):
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, value: object) -> object:
        if value not in self.words:
            raise ValueError(f"must be one of {', '.join(self.words)}")
        return value


class Flag:
    """True or false."""

    def read(self, value: object) -> object:
        words = dict.fromkeys(("true", "t", "1", "yes", "y", "on"), True)
        words |= dict.fromkeys(("false", "f", "0", "no", "n", "off"), False)
        flag = words.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(flag, bool):
            raise ValueError("must be true or false")  # noqa: TRY004 - a value of a setting, whatever its type
        return flag


class Text:
    """One line of text."""

    def read(self, value: object) -> object:
        if not isinstance(value, str) or value != value.strip() or not (value.isprintable() or not value):
            raise ValueError("must be one line, without blanks around it")
        return value


class Pattern(NamedTuple):
    """A text that a regular expression matches as a whole."""

    pattern: str
    meaning: str

    def read(self, value: object) -> object:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise ValueError(f"must be {self.meaning}")
        return value


class Several(NamedTuple):
    """Texts with commas between them, each by the same rule."""

    each: Rule

    def read(self, value: object) -> object:
        """A tuple without the empty parts."""
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",")]
            if not any(parts):
                raise ValueError("must name at least one, comma-separated")
            value = [part for part in parts if part]
        if not isinstance(value, Iterable):
            raise ValueError("must be texts, comma-separated")  # noqa: TRY004 - as above
        try:
            return tuple(self.each.read(part) for part in value)
        except ValueError as error:
            raise ValueError(f"each, comma-separated, {error}") from None


class Table(NamedTuple):
    """A JSON object whose values are texts, each by the same rule."""

    each: Rule

    def read(self, value: object) -> object:
        try:
            table = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, Mapping) or not all(isinstance(part, str) for part in table.values()):
            raise ValueError("must be a JSON object whose values are texts")
        for part in table.values():
            try:
                self.each.read(part)
            except ValueError as error:
                raise ValueError(f"each value of the JSON object: {error}") from None
        return dict(table)


class Url:
    """An http(s) URL; https may be left out."""

    def read(self, value: object) -> object:
        if not isinstance(value, str) or base_of(value) is None:
            raise ValueError("must be a URL such as https://name.example.com")
        return value


class Workspace:
    """The URL of a Databricks workspace."""

    def read(self, value: object) -> object:
        """With https where nothing else is said, and without what a browser shows after the host."""
        base = base_of(value) if isinstance(value, str) else None
        if base is None:
            raise ValueError("must be a URL such as https://adb-1234567890123456.7.azuredatabricks.net")
        return base


def base_of(url: str) -> str | None:
    """Scheme, host and port; None where the text is no http(s) URL."""
    if not url.isprintable() or re.search(r"\s", url):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return None
    valid = parts.scheme in ("http", "https") and parts.hostname and port_is_valid and "@" not in parts.netloc
    return f"{parts.scheme}://{parts.netloc}" if valid else None


class ConnectionString(NamedTuple):
    """Parts `Name=value` with semicolons between them; the case of a name does not count."""

    needed: tuple[str, ...] = ()

    def read(self, value: object) -> object:
        pairs = [part.split("=", 1) for part in str(value).split(";") if part]
        names = {pair[0].lower() for pair in pairs if len(pair) == 2}
        if not isinstance(value, str) or len(names) < len(pairs) or not {*map(str.lower, self.needed)} <= names:
            with_which = f", {' and '.join(self.needed)} among them" if self.needed else ""
            raise ValueError(f"must be a connection string: parts Name=value{with_which}, with semicolons between them")
        return value


class Base64Key:
    """A key as Azure shows it."""

    def read(self, value: object) -> object:
        try:
            base64.b64decode(value if isinstance(value, str) else "?", validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("must be base64: copy the whole key") from None
        return value


MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")


class Schedule:
    """An NCRONTAB expression of six fields, as a timer trigger reads it (atifaziz/NCrontab)."""

    def read(self, value: object) -> object:
        """The expression with single blanks."""
        fields = value.split() if isinstance(value, str) else []
        limits = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
        names: tuple[Sequence[str], ...] = ((), (), (), (), MONTHS, WEEKDAYS)
        if len(fields) != 6 or not all(map(is_schedule_field, fields, limits, names)):
            raise ValueError(
                "must have six fields with numbers in their range (seconds, minutes, hours, days, months, days of the"
                " week), such as 0 */5 * * * *"
            )
        return " ".join(fields)


def is_schedule_field(text: str, limits: tuple[int, int], names: Sequence[str]) -> bool:
    """Whether it is numbers or names in their range, `a-b`, `*`, each perhaps with `/step`, and commas between them.

    Names may be cut off, from three letters on.
    """
    low, high = limits

    def is_value(word: str) -> bool:
        if re.fullmatch("[0-9]{1,2}", word):
            return low <= int(word) <= high
        return len(word) >= 3 and any(name.startswith(word.lower()) for name in names)

    def is_part(part: str) -> bool:
        values, slash, step = part.partition("/")
        steps = not slash or (bool(re.fullmatch("[0-9]{1,2}", step)) and int(step) > 0)
        return steps and (values == "*" or all(map(is_value, values.split("-", 1))))

    return all(map(is_part, text.split(",")))


TEXT = Text()
URL = Url()
SCHEDULE = Schedule()
ADDRESS = Pattern(r"[^@\s,;<>\"]+@[^@\s,;<>\"]+", "a mail address such as team@example.com")
DOMAIN = Pattern(r"([A-Za-z0-9-]|[^\x00-\x7F\s])+(\.([A-Za-z0-9-]|[^\x00-\x7F\s])+)+", "a domain such as example.com")
NUMBER_OF_A_JOB = Pattern("[0-9]{1,19}", "the number of a job")
HOST = Pattern(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", "a host name such as name.servicebus.windows.net")
UUID = Pattern("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", "a UUID")
TABLE_NAME_START = Pattern("[a-z][a-z0-9]{0,40}", "a small letter, then small letters and digits, at most 41")


def count(low: int, high: int | None = None) -> Number:
    return Number(low, high, whole=True)


def positive(high: int | None = None) -> Number:
    return Number(0, high, above=True)


WHOLE_SECONDS = count(1, LONGEST_SECONDS)
SECONDS = positive(LONGEST_SECONDS)
MINUTES = positive(LONGEST_MINUTES)
HOURS = positive(LONGEST_HOURS)
DAYS = positive(LONGEST_DAYS)

RULES: Mapping[str, Rule] = {
    "DATABRICKS_HOST": Several(Workspace()),
    "DATABRICKS_TOKEN": TEXT,
    "DATABRICKS_CLIENT_ID": TEXT,
    "DATABRICKS_CLIENT_SECRET": TEXT,
    "DATABRICKS_TIMEOUT_SECONDS": WHOLE_SECONDS,
    "DATABRICKS_RETRY_SECONDS": WHOLE_SECONDS,
    "AZURE_OPENAI_ENDPOINT": URL,
    "AZURE_OPENAI_DEPLOYMENT": TEXT,
    "AZURE_OPENAI_KEY": TEXT,
    "AZURE_OPENAI_TIMEOUT_SECONDS": WHOLE_SECONDS,
    "AZURE_OPENAI_MAX_RETRIES": count(0, 5),
    "AI_TOKENS_PER_DAY": count(0),
    "AI_WINDOW_MINUTES": MINUTES,
    "AI_MODE": Choice(("always", "unsure", "never")),
    "ACS_ENDPOINT": URL,
    "ACS_ACCESS_KEY": Base64Key(),
    "ACS_TIMEOUT_SECONDS": WHOLE_SECONDS,
    "SENDER_EMAIL": ADDRESS,
    "ESCALATION_EMAILS": Several(ADDRESS),
    "OWNERS": Table(Several(ADDRESS)),
    "ALLOWED_RECIPIENT_DOMAINS": Several(DOMAIN),
    "SERVICE_BUS_CONNECTION": ConnectionString(needed=("Endpoint",)),
    "SERVICE_BUS_CONNECTION__fullyQualifiedNamespace": HOST,
    "TABLES_ENDPOINT": URL,
    "TABLES_CONNECTION_STRING": ConnectionString(),
    "TABLE_PREFIX": TABLE_NAME_START,
    "HISTORY_DAYS": count(60, LONGEST_DAYS),
    "AZURE_CLIENT_ID": UUID,
    "DEFAULT_MODE": Choice(("off", "observe", "retry", "full")),
    "DRY_RUN": Flag(),
    "JOB_IDS": Several(NUMBER_OF_A_JOB),
    "JOB_TAGS": Table(TEXT),
    "MAX_RETRY_ATTEMPTS": count(0, 10),
    "RETRY_WITH_PARAMS_ATTEMPTS": count(0, 10),
    "MAX_NODE_MEMORY_GB": positive(),
    "MAX_WORKERS": count(1),
    "MAX_TIMEOUT_HOURS": HOURS,
    "MAX_COST_FACTOR": Number(1),
    "MAX_FAILURE_AGE_HOURS": HOURS,
    "RETRY_BUDGET_SHARE": Number(0, 1),
    "RETRY_BUDGET_FLOOR": count(0),
    "RETRY_BUDGET_WINDOW_MINUTES": MINUTES,
    "MAX_CONCURRENT_RETRIES": count(1),
    "SLOT_WAIT_SECONDS": SECONDS,
    "RETRIES_PER_JOB_AND_DAY": count(0),
    "RETRY_HOURS_PER_DAY": Number(0),
    "BREAKER_FAILURES": count(2),
    "BREAKER_WINDOW_MINUTES": MINUTES,
    "BREAKER_FAILED_RETRIES": count(1),
    "CANARY_INTERVAL_MINUTES": MINUTES,
    "CANARY_ATTEMPTS": count(1),
    "MAILS_AT_ONCE_PER_HOUR": count(0),
    "GROUP_WAIT_SECONDS": Number(0, LONGEST_SECONDS),
    "DIGEST_INTERVAL_MINUTES": MINUTES,
    "MAIL_REPEAT_HOURS": HOURS,
    "FIND_FAILURES_SCHEDULE": SCHEDULE,
    "FOLLOW_UP_SCHEDULE": SCHEDULE,
    "AUDIT_SCHEDULE": SCHEDULE,
    "BACKOFF_BASE_SECONDS": SECONDS,
    "BACKOFF_CAP_SECONDS": SECONDS,
    "DEFER_BASE_SECONDS": SECONDS,
    "DEFER_CAP_SECONDS": SECONDS,
    "DEFER_GIVE_UP_HOURS": HOURS,
    "INVOCATION_SECONDS": Number(10, 540),
    "CLAIM_SETTLE_SECONDS": SECONDS,
    "PAUSE_CHECK_SECONDS": SECONDS,
    "STALE_AFTER_MINUTES": MINUTES,
    "OVERLAP_SECONDS": Number(0, LONGEST_SECONDS),
    "SWEEP_INTERVAL_MINUTES": MINUTES,
    "SWEEP_DAYS": DAYS,
    "MONITOR_WINDOW_MINUTES": MINUTES,
    "MONITOR_LOOKBACK_HOURS": HOURS,
}
"""By the name of the environment variable."""


def read(name: str, value: object) -> object:
    """The value as the settings hold it, without the blanks and line ends around it, which files and shells add.

    An empty one, given in code, stays what it is. Raises ValueError.
    """
    if value in ("", (), {}):
        return value
    if isinstance(value, str):
        value = value.strip()
        if not value:
            raise ValueError("must not be blank: give a value, or remove the setting")
        for start, what in UNRESOLVED.items():
            if value.startswith(start):
                raise ValueError(f"is {what}; once that is so, restart the app")
    return RULES[name].read(value)


def given(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings that an environment sets. As pydantic-settings has it, the case of a name does not count, and what
    is empty is not set.
    """
    names = {name.lower(): name for name in RULES}
    found = {names.get(name.lower()): value for name, value in environment.items() if value}
    return {name: value for name, value in found.items() if name is not None}


def wrong(values: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with which of the settings."""
    problems = {}
    for name in [name for name in RULES if name in values]:
        try:
            read(name, values[name])
        except ValueError as error:
            problems[name] = str(error)
    return problems


def wrong_text(problems: Mapping[str, str]) -> str:
    """All of them in one line."""
    return f"wrong settings: {'; '.join(f'{name}: {why}' for name, why in problems.items())}"


def missing_text(missing: Sequence[str]) -> str:
    """All of them in one line."""
    return f"missing settings: {'; '.join(missing)}"


class Clash(NamedTuple):
    """Settings that are right one by one and not together, and why."""

    names: tuple[str, ...]
    text: str


def missing(*names: str) -> Clash:
    return Clash(names, missing_text(names))


def clashes(values: Mapping[str, str]) -> list[Clash]:
    """What does not go together. The workspaces count where their URLs are right."""
    token, client_id, client_secret, acs_endpoint, acs_key, model, deployment, ai_mode = (
        values.get(name, "").strip()
        for name in (
            "DATABRICKS_TOKEN",
            "DATABRICKS_CLIENT_ID",
            "DATABRICKS_CLIENT_SECRET",
            "ACS_ENDPOINT",
            "ACS_ACCESS_KEY",
            "AZURE_OPENAI_ENDPOINT",
            "AZURE_OPENAI_DEPLOYMENT",
            "AI_MODE",
        )
    )
    try:
        hosts = read("DATABRICKS_HOST", values.get("DATABRICKS_HOST", ()))
    except ValueError:
        hosts = ()
    assert isinstance(hosts, tuple)
    found = [
        sign_in_clash(hosts, token=token, client_id=client_id, client_secret=client_secret) if hosts else None,
        mail_clash(acs_endpoint, access_key=acs_key),
        missing("AZURE_OPENAI_DEPLOYMENT") if model and not deployment and ai_mode != "never" else None,
    ]
    return [clash for clash in found if clash]


def sign_in_clash(hosts: Sequence[str], *, token: str, client_id: str, client_secret: str) -> Clash | None:
    """Why there is not exactly one way to sign in at every workspace."""
    if len({workspace_name(host) for host in hosts}) < len(hosts):
        return Clash(("DATABRICKS_HOST",), "DATABRICKS_HOST names a workspace twice")
    if token:
        several = (
            "DATABRICKS_TOKEN belongs to one workspace, but DATABRICKS_HOST names several: use a service principal"
            " (DATABRICKS_CLIENT_ID and DATABRICKS_CLIENT_SECRET) or a managed identity"
        )
        return Clash(("DATABRICKS_TOKEN", "DATABRICKS_HOST"), several) if len(hosts) > 1 else None
    if client_id or client_secret:
        if client_id and client_secret:
            return None
        return missing("DATABRICKS_CLIENT_SECRET" if client_id else "DATABRICKS_CLIENT_ID")
    return None if all(map(is_azure, hosts)) else missing("DATABRICKS_TOKEN or DATABRICKS_CLIENT_ID")


def mail_clash(endpoint: str, *, access_key: str) -> Clash | None:
    """Over plain http azure-core sends no token of an identity."""
    if access_key or not endpoint.lower().startswith("http://"):
        return None
    return Clash(("ACS_ENDPOINT", "ACS_ACCESS_KEY"), "ACS_ENDPOINT must be https where no ACS_ACCESS_KEY is set")
