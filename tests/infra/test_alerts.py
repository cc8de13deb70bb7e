"""Each alert has a severity, a reason, a section of the runbook, and a query over telemetry that exists."""

import re
from functools import cache

import pytest

from tests.infra.bicep import INFRA, ROOT, Tree, read

ALERTS = read("modules/alerts.bicep")
RUNBOOK = ROOT / "docs" / "runbook.md"
TELEMETRY = ROOT / "shared" / "telemetry.py"
STEPS = {"find_failures": "find_failures_minutes", "follow_up": "follow_up_minutes", "audit": "audit_minutes"}
ASKED_FOR = {
    "dead-letters",
    "no-heartbeat",
    "duplicate-actions",
    "mail-quota",
    "rules-fallback",
    "function-failures",
    "parked-incidents",
}

WINDOWS = {"PT5M", "PT10M", "PT15M", "PT30M", "PT45M", "PT1H", "PT2H", "PT3H", "PT4H", "PT5H", "PT6H", "P1D", "P2D"}
FREQUENCIES = {"PT5M", "PT10M", "PT15M", "PT30M", "PT45M", "PT1H", "PT2H", "PT3H", "PT4H", "PT5H", "PT6H", "P1D"}
"""What Azure Monitor allows in a scheduled query rule (one minute left out: it forbids some queries)."""


def log_alerts() -> list[Tree]:
    alerts: list[Tree] = ALERTS.variable("logAlerts")
    return alerts


def queries() -> list[str]:
    return sorted(path.name for path in (INFRA / "queries").iterdir())


@cache
def query(name: str) -> str:
    return (INFRA / "queries" / name).read_text()


def metrics(name: str) -> set[str]:
    """The metrics that a query reads, without their prefix."""
    return set(re.findall(r"'remediation\.([a-z_.]+)'", query(name)))


def anchors() -> set[str]:
    metric = re.findall(r"\$\{runbook\}#([a-z-]+)", ALERTS.text)
    return {*metric, *(alert["anchor"] for alert in log_alerts())}


def test_the_alerts_are_those_that_were_asked_for() -> None:
    assert anchors() == ASKED_FOR
    assert {alert["name"] for alert in log_alerts()} == ASKED_FOR - {"dead-letters"}


@pytest.mark.parametrize("alert", log_alerts(), ids=lambda alert: alert["name"])
def test_log_alerts_are_complete_and_within_what_azure_allows(alert: Tree) -> None:
    assert alert["severity"] in {0, 1, 2}
    assert alert["window"] in WINDOWS
    assert alert["frequency"] in FREQUENCIES
    assert len(alert["meaning"].split()) >= 8
    assert alert["anchor"] == alert["name"]


def test_every_alert_tells_the_escalation_addresses_and_names_its_section() -> None:
    (group,) = ALERTS.of_type("Microsoft.Insights/actionGroups")
    assert "split(escalationEmails, ',')" in ALERTS.text
    assert len(group.value("properties.groupShortName")) <= 12  # Azure Monitor's limit
    (logs,) = ALERTS.of_type("Microsoft.Insights/scheduledQueryRules")
    assert logs.value("properties.description") == "${alert.meaning} ${runbook}#${alert.anchor}"
    for rule in (logs, *ALERTS.of_type("Microsoft.Insights/metricAlerts")):
        assert "actionGroup" in str(rule.value("properties.actions"))


def test_dead_letters_are_told_from_the_first_one_on() -> None:
    (rule,) = ALERTS.of_type("Microsoft.Insights/metricAlerts")
    (criterion,) = rule.value("properties.criteria.allOf")
    assert criterion["metricName"] == "DeadletteredMessages"
    assert (criterion["timeAggregation"], criterion["operator"], criterion["threshold"]) == (
        "Maximum",
        "GreaterThan",
        0,
    )


@pytest.mark.parametrize("name", queries())
def test_every_query_is_used_and_all_that_it_leaves_open_is_filled_in(name: str) -> None:
    assert f"loadTextContent('../queries/{name}')" in ALERTS.text
    left_open = set(re.findall(r"\{\w+\}", query(name)))
    assert "{component}" in left_open  # else a workspace of others would be read too
    filled_in = set(re.findall(r"'(\{\w+\})'", ALERTS.text))
    assert left_open <= filled_in


@pytest.mark.parametrize("name", queries())
def test_every_table_is_narrowed_to_this_app(name: str) -> None:
    tables = len(re.findall(r"\bApp(Metrics|Requests)\b", query(name)))
    assert tables >= 1
    assert query(name).count("_ResourceId =~ '{component}'") == tables


def test_the_heartbeat_is_expected_of_every_timer_and_looked_for_long_enough() -> None:
    expected = re.findall(r"'(\w+)', \{(\w+)\}", query("no_heartbeat.kql"))
    assert dict(expected) == STEPS
    (alert,) = [alert for alert in log_alerts() if alert["name"] == "no-heartbeat"]
    intervals, late = ALERTS.variable("silentIntervals"), ALERTS.variable("ingestionMinutes")
    assert intervals == 3
    assert alert["window"] == "PT6H"
    assert intervals * ALERTS.variable("auditMinutes") + late <= 6 * 60


def test_queries_ask_for_metrics_that_the_app_counts() -> None:
    asked = {name for file in queries() for name in metrics(file)}
    assert asked == {"heartbeat", "duplicate_actions", "mail.sent", "decisions", "parked"}
    kinds = {name: kind for kind, name in re.findall(r'\b(counter|gauge)\(\s*"([a-z_.]+)"', TELEMETRY.read_text())}
    added_up = {
        name for file in queries() if "sum(Sum" in query(file) or "sumif(Sum" in query(file) for name in metrics(file)
    }
    assert {kinds[name] for name in added_up} == {"counter"}
    assert {kinds[name] for name in asked - added_up - {"heartbeat"}} == {"gauge"}  # a gauge is told again and again


def test_every_section_that_an_alert_names_is_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    as_anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    explicit = set(re.findall(r'<a (?:id|name)="([a-z-]+)"', RUNBOOK.read_text()))
    assert anchors() <= as_anchors | explicit
