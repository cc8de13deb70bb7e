"""What the app's identity may do: asked of the stand-in workspace over a socket."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import PermissionDenied
from databricks.sdk.service.jobs import JobPermissionLevel
from hypothesis import given
from hypothesis import strategies as st

from local.databricks.server import create_databricks_app
from shared.databricks_api import WorkspaceApi
from shared.databricks_rights import (
    LEVELS,
    NEEDED_ON_JOB,
    SAMPLE,
    MissingRightsError,
    UnknownIdentityError,
    check_rights,
    held,
    principal_of,
)
from shared.domain import Json
from shared.errors import TransientError
from shared.role_commands import Grant, Principal
from tests.infra.bicep import ROOT
from tests.shared.databricks_service import Service, serving, settings_for

APPLICATION_ID = "11111111-2222-3333-4444-555555555555"
SERVICE_PRINCIPAL = {
    "userName": APPLICATION_ID,
    "displayName": "failure-agent",
    "groups": [{"display": "operators", "type": "direct"}],
}


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(lambda: create_databricks_app(effects_path=None)) as running:
        yield running


def load_jobs(service: Service, *job_ids: int, **settings: Any) -> None:
    task = {"task_key": "load"}
    base = {"tasks": [task]} | settings
    service.load({"jobs": [{"job_id": n, "name": f"job-{n}", "settings": base} for n in job_ids]})


def entry(level: str, *, group: str = "", name: str = APPLICATION_ID) -> Json:
    """An entry of an access control list: of a group, else of a service principal."""
    who = {"group_name": group} if group else {"service_principal_name": name}
    return who | {"all_permissions": [{"permission_level": level, "inherited": False}]}


def as_service_principal(service: Service, *, shown_to: str = "all", **permissions: list[Json]) -> None:
    """Ask as a service principal; `job_1=[…]` is the list of jobs/1."""
    named = {name.replace("job_", "jobs/"): entries for name, entries in permissions.items()}
    service.control("rights", {"me": SERVICE_PRINCIPAL, "permissions": named, "shown_to": shown_to})


def check(service: Service, progress: list[str] | None = None, **settings: Any) -> str:
    told: list[str] = [] if progress is None else progress
    found = settings_for(service.url, **settings)
    return check_rights(WorkspaceApi(service.url, found, SignedIn(), service.clock), found, told.append)


class SignedIn:
    """The Entra credential of whoever is signed in; the workspace knows who that is."""

    def get_token(self, *_scopes: str, **_options: object) -> AccessToken:
        return AccessToken("token", 2**40)


def missing(service: Service, **settings: Any) -> tuple[Grant, ...]:
    """What is missing; none where nothing is."""
    try:
        check(service, **settings)
    except MissingRightsError as error:
        return error.missing
    return ()


@pytest.mark.parametrize(
    ("mode", "level", "lacks"),
    [
        ("observe", "CAN_VIEW", ""),
        ("observe", "IS_OWNER", ""),
        ("retry", "CAN_VIEW", "CAN_MANAGE_RUN"),
        ("retry", "CAN_MANAGE_RUN", ""),
        ("retry", "CAN_MANAGE", ""),
        ("full", "CAN_VIEW", "CAN_MANAGE"),
        ("full", "CAN_MANAGE_RUN", "CAN_MANAGE"),
        ("full", "CAN_MANAGE", ""),
        ("full", "IS_OWNER", ""),
        ("off", "CAN_VIEW", ""),
    ],
)
def test_each_mode_needs_its_level(service: Service, mode: str, level: str, lacks: str) -> None:
    load_jobs(service, 1)
    as_service_principal(service, job_1=[entry(level)])
    assert missing(service, default_mode=mode) == ((Grant("jobs", "1", lacks),) if lacks else ())


def test_a_job_tag_overrides_the_default_mode(service: Service) -> None:
    load_jobs(service, 1, tags={"failure-agent": "full"})
    load_jobs(service, 2, tags={"failure-agent": "off"})
    load_jobs(service, 3)
    viewer = [entry("CAN_VIEW")]
    as_service_principal(service, job_1=viewer, job_2=viewer, job_3=viewer)
    assert missing(service, default_mode="observe") == (Grant("jobs", "1", "CAN_MANAGE"),)


def test_jobs_without_the_tags_of_job_tags_need_nothing(service: Service) -> None:
    load_jobs(service, 1, tags={"team": "orders"})
    load_jobs(service, 2, tags={"team": "other"})
    viewer = [entry("CAN_VIEW")]
    as_service_principal(service, job_1=viewer, job_2=viewer)
    found = missing(service, default_mode="retry", job_tags={"team": "orders"})
    assert found == (Grant("jobs", "1", "CAN_MANAGE_RUN"),)


def test_the_text_says_who_it_is_and_what_it_holds_and_how(service: Service) -> None:
    load_jobs(service, 1, 2, 3)
    as_service_principal(
        service,
        job_1=[entry("CAN_MANAGE_RUN"), entry("CAN_VIEW", group="users")],
        job_2=[entry("CAN_MANAGE_RUN", group="operators"), entry("CAN_MANAGE", name="somebody-else")],
        job_3=[entry("CAN_MANAGE_RUN")],
    )
    text = check(service, default_mode="retry")
    assert text.startswith(f"service principal {APPLICATION_ID} (groups: operators); looked at all jobs that it sees;")
    assert "CAN_MANAGE_RUN on 2 jobs (directly)" in text
    assert "CAN_MANAGE_RUN on 1 job (by group operators)" in text


def test_the_error_names_who_lacks_what(service: Service) -> None:
    load_jobs(service, 1, 2)
    as_service_principal(service, job_1=[entry("CAN_VIEW")], job_2=[entry("CAN_MANAGE_RUN")])
    with pytest.raises(MissingRightsError, match=r"missing: CAN_MANAGE_RUN on 1 job \(1\)$") as caught:
        check(service, default_mode="retry")
    assert caught.value.principal.name == APPLICATION_ID
    assert caught.value.principal.is_service_principal
    assert caught.value.host == ""


def test_of_several_workspaces_the_error_names_this_one(service: Service) -> None:
    load_jobs(service, 1)
    as_service_principal(service, job_1=[entry("CAN_VIEW")])
    hosts = (service.url, "https://adb-1.2.azuredatabricks.net")
    with pytest.raises(MissingRightsError) as caught:
        check(service, default_mode="retry", databricks_host=hosts)
    assert caught.value.host == service.url


def test_mode_full_also_needs_the_policy_and_the_pools_of_the_clusters(service: Service) -> None:
    pooled = {"instance_pool_id": "pool-1", "driver_instance_pool_id": "pool-2", "num_workers": 1}
    load_jobs(
        service,
        1,
        job_clusters=[{"job_cluster_key": "main", "new_cluster": {"policy_id": "P1", "num_workers": 1}}],
        tasks=[{"task_key": "load", "job_cluster_key": "main"}, {"task_key": "own", "new_cluster": pooled}],
    )
    as_service_principal(service, job_1=[entry("CAN_MANAGE")])
    attach: list[Json] = [entry("CAN_ATTACH_TO")]
    lists = {"cluster-policies/P1": [], "instance-pools/pool-1": attach, "instance-pools/pool-2": []}
    service.control("rights", {"permissions": lists})
    assert missing(service, default_mode="retry") == ()
    assert missing(service, default_mode="full") == (
        Grant("cluster-policies", "P1", "CAN_USE"),
        Grant("instance-pools", "pool-2", "CAN_ATTACH_TO"),
    )


def test_permissions_that_may_not_be_read_are_told_and_are_no_failure(service: Service) -> None:
    load_jobs(service, 1)
    as_service_principal(service, shown_to="managers", job_1=[entry("CAN_MANAGE_RUN")])
    text = check(service, default_mode="retry")
    assert "cannot be read (403): whether it has CAN_MANAGE_RUN on 1 job (1)" in text
    assert "databricks permissions get jobs 1" in text


def test_a_job_that_is_shown_may_be_viewed_whether_its_permissions_can_be_read_or_not(service: Service) -> None:
    load_jobs(service, 1)
    as_service_principal(service, shown_to="managers", job_1=[entry("CAN_VIEW")])
    assert "cannot be read" not in check(service, default_mode="observe")


def test_a_named_job_that_is_hidden_lacks_what_the_default_mode_needs(service: Service) -> None:
    load_jobs(service, 1, 2)
    as_service_principal(service, job_1=[entry("CAN_MANAGE_RUN")], job_2=[entry("CAN_MANAGE", name="somebody-else")])
    assert missing(service, default_mode="retry", job_ids=("1", "2")) == (Grant("jobs", "2", "CAN_MANAGE_RUN"),)


def test_a_named_job_that_does_not_exist_is_told(service: Service) -> None:
    load_jobs(service, 1)
    assert "not in this workspace: 99" in check(service, job_ids=("1", "99"))


def test_where_no_job_is_named_a_bounded_sample_is_looked_at(service: Service) -> None:
    load_jobs(service, *range(1, 41))
    progress: list[str] = []
    assert f"looked at the first {SAMPLE} of jobs/list, a sample" in check(service, progress)
    assert service.control("calls")["total"] == 2 + SAMPLE  # Me, the list, one for each job
    assert progress[-1] == f"{SAMPLE} of {SAMPLE} permissions read"


def test_at_most_a_hundred_named_jobs_are_looked_at(service: Service) -> None:
    load_jobs(service, *range(1, 4))
    names = tuple(str(n) for n in range(1, 131))
    assert "looked at the first 100 jobs of JOB_IDS" in check(service, job_ids=names)
    assert service.control("calls")["total"] == 1 + 100 + 3


def test_who_sees_no_job_is_told_what_it_needs(service: Service) -> None:
    assert "sees no job: it needs CAN_VIEW" in check(service)


def test_an_admin_needs_no_further_look(service: Service) -> None:
    load_jobs(service, 1)
    service.control("rights", {"me": {"userName": "a@example.com", "groups": [{"display": "admins"}]}})
    assert "admin of the workspace" in check(service, default_mode="full")
    assert service.control("calls")["total"] == 1


def test_who_is_not_let_in_at_all_is_told_so(service: Service) -> None:
    assert check(service, databricks_token="bad-token").startswith("cannot be read: GET /api/2.0/preview/scim/v2/Me")


def test_a_workspace_that_does_not_answer_is_an_error(service: Service) -> None:
    load_jobs(service, 1)
    service.set_fault("GET /api/2.0/permissions/jobs", "503")
    with pytest.raises(TransientError):
        check(service, default_mode="retry")


# --- At a desk: a person looks, and the app's identity is judged

ADMIN = {"userName": "admin@example.com", "groups": [{"display": "admins"}]}
IN_WORKSPACE = {"id": "7002", "applicationId": APPLICATION_ID, "groups": [{"display": "operators"}]}
AT_A_DESK: dict[str, Any] = {"databricks_token": "", "azure_client_id": APPLICATION_ID}


def at_a_desk(service: Service, identity: Json | None, me: Json = ADMIN, **permissions: list[Json]) -> None:
    """A person looks; `identity` is the app's, as the workspace shows it, beside another that is none of its business.

    `job_1=[…]` is the list of jobs/1.
    """
    other = {"id": "7003", "applicationId": "another", "groups": [{"display": "admins"}]}
    known = [other, identity] if identity else [other]
    named = {name.replace("job_", "jobs/"): entries for name, entries in permissions.items()}
    service.control("rights", {"me": me, "service_principals": known, "permissions": named})


def test_at_a_desk_the_identity_is_judged_and_not_the_admin_who_looks(service: Service) -> None:
    load_jobs(service, 1, 2, 3)
    at_a_desk(
        service,
        IN_WORKSPACE,
        job_1=[entry("CAN_VIEW")],
        job_2=[entry("CAN_MANAGE_RUN", group="operators")],
        job_3=[entry("CAN_MANAGE_RUN"), entry("CAN_MANAGE", group="admins")],
    )
    with pytest.raises(MissingRightsError) as caught:
        check(service, default_mode="retry", **AT_A_DESK)
    text = str(caught.value)
    assert text.startswith(
        f"service principal {APPLICATION_ID} (groups: operators), as user admin@example.com sees it;"
    )
    assert "looked at all jobs that user admin@example.com sees;" in text
    assert "CAN_MANAGE_RUN on 1 job (by group operators); CAN_MANAGE_RUN on 1 job (directly)" in text
    assert caught.value.principal.name == APPLICATION_ID
    assert caught.value.missing == (Grant("jobs", "1", "CAN_MANAGE_RUN"),)


def test_an_admin_sees_that_nothing_is_missing(service: Service) -> None:
    load_jobs(service, 1)
    at_a_desk(service, IN_WORKSPACE, job_1=[entry("CAN_MANAGE_RUN")])
    assert check(service, default_mode="retry", **AT_A_DESK).endswith("CAN_MANAGE_RUN on 1 job (directly)")


@pytest.mark.parametrize("hosts", [(), ("https://adb-1.2.azuredatabricks.net",)])
def test_an_identity_that_the_workspace_does_not_know_is_missing(service: Service, hosts: tuple[str, ...]) -> None:
    at_a_desk(service, None)
    with pytest.raises(UnknownIdentityError, match=f"no service principal {APPLICATION_ID}.*as user admin@") as caught:
        check(service, **AT_A_DESK, databricks_host=(service.url, *hosts))
    assert caught.value.application_id == APPLICATION_ID
    assert caught.value.host == (service.url if hosts else "")


def test_an_identity_that_is_admin_is_told_and_by_whom_it_was_seen(service: Service) -> None:
    at_a_desk(service, IN_WORKSPACE | {"groups": [{"display": "admins"}]})
    text = check(service, **AT_A_DESK)
    assert "(groups: admins), as user admin@example.com sees it; admin of the workspace" in text


@pytest.mark.parametrize("me", [SERVICE_PRINCIPAL, SERVICE_PRINCIPAL | {"userName": APPLICATION_ID.upper()}])
def test_in_azure_the_identity_itself_looks(service: Service, me: Json) -> None:
    load_jobs(service, 1)
    as_service_principal(service, job_1=[entry("CAN_VIEW", group="operators")])
    service.control("rights", {"me": me})
    assert "sees it" not in check(service, **AT_A_DESK)
    assert service.calls("GET /api/2.0/preview/scim/v2/ServicePrincipals") == 0


@pytest.mark.parametrize("sign_in", [{"databricks_token": "token"}, {"azure_client_id": ""}])
def test_whoever_signs_in_by_other_means_is_judged_as_such(service: Service, sign_in: dict[str, str]) -> None:
    at_a_desk(service, IN_WORKSPACE)
    assert check(service, **AT_A_DESK | sign_in).startswith("user admin@example.com (groups: admins); admin of")


def test_jobs_that_are_kept_from_the_identity_are_told_and_are_no_failure(service: Service) -> None:
    cluster = {"job_cluster_key": "main", "new_cluster": {"policy_id": "P1", "num_workers": 1}}
    load_jobs(service, 1, 2)
    load_jobs(service, 3, tags={"failure-agent": "full"}, job_clusters=[cluster])
    others = [entry("CAN_MANAGE", group="others")]
    at_a_desk(service, IN_WORKSPACE, job_1=[entry("CAN_MANAGE_RUN")], job_2=others, job_3=others)
    text = check(service, default_mode="retry", **AT_A_DESK)
    assert "(without 2 that it may not view, so leaves alone: " in text
    assert "missing" not in text


def test_an_identity_that_may_view_no_job_at_all_lacks_its_rights(service: Service) -> None:
    load_jobs(service, 1)
    at_a_desk(service, IN_WORKSPACE, job_1=[])
    assert missing(service, **AT_A_DESK) == (Grant("jobs", "1", "CAN_VIEW"),)


def test_a_named_job_that_the_identity_may_not_view_lacks_its_right(service: Service) -> None:
    load_jobs(service, 1, 2)
    at_a_desk(service, IN_WORKSPACE, job_1=[entry("CAN_VIEW")], job_2=[])
    assert missing(service, job_ids=("1", "2"), **AT_A_DESK) == (Grant("jobs", "2", "CAN_VIEW"),)


@pytest.mark.parametrize("refused", ["GET /api/2.0/permissions/jobs/1", "GET /api/2.2/jobs/get"])
def test_what_the_person_may_not_see_is_unknown(service: Service, refused: str) -> None:
    load_jobs(service, 1)
    at_a_desk(service, IN_WORKSPACE, job_1=[])
    service.set_fault(refused, "error", status=403, body={"error_code": "PERMISSION_DENIED", "message": "no"})
    text = check(service, job_ids=("1",), **AT_A_DESK)
    assert "cannot be read (403): whether it has CAN_VIEW on 1 job (1)" in text


def test_who_is_not_shown_the_groups_of_the_identity_cannot_judge_it(service: Service) -> None:
    at_a_desk(service, IN_WORKSPACE, {"userName": "somebody@example.com"})
    text = check(service, **AT_A_DESK)
    assert text.startswith(
        f"cannot be read: user somebody@example.com is not shown the groups of service principal {APPLICATION_ID}"
    )


def test_who_may_not_look_the_identity_up_is_told_who_may(service: Service) -> None:
    at_a_desk(service, IN_WORKSPACE)
    denied = {"error_code": "PERMISSION_DENIED", "message": "no"}
    service.set_fault("GET /api/2.0/preview/scim/v2/ServicePrincipals", "error", status=403, body=denied)
    text = check(service, **AT_A_DESK)
    assert text.startswith("cannot be read: user admin@example.com may not look up service principal")
    assert "an admin of the workspace may" in text


@pytest.mark.parametrize(
    ("me", "principal"),
    [
        ({"userName": "a@example.com"}, Principal("a@example.com", False)),
        ({"userName": APPLICATION_ID}, Principal(APPLICATION_ID, True)),
        ({"applicationId": APPLICATION_ID}, Principal(APPLICATION_ID, True)),
        ({"userName": "a", "groups": [{"display": "x"}, {}]}, Principal("a", False, frozenset({"x"}))),
        ({"userName": "a", "groups": None}, Principal("a", False)),
    ],
)
def test_who_we_are(me: Json, principal: Principal) -> None:
    assert principal_of(me) == principal


LISTS = st.lists(
    st.builds(
        lambda level, group, name: entry(level, group=group, name=name),
        st.sampled_from([*LEVELS["jobs"], "CAN_SOMETHING_NEW"]),
        st.sampled_from(["", "operators", "users", "others"]),
        st.sampled_from([APPLICATION_ID, "somebody-else"]),
    )
)


@given(entries=LISTS, data=st.data())
def test_the_highest_level_counts_in_whatever_order_and_others_do_not(entries: list[Json], data: st.DataObject) -> None:
    principal, order = principal_of(SERVICE_PRINCIPAL), LEVELS["jobs"]
    level, group = held(entries, principal, order)
    assert held(data.draw(st.permutations(entries)), principal, order)[0] == level
    ours = [
        one["all_permissions"][0]["permission_level"]
        for one in entries
        if one.get("service_principal_name") == APPLICATION_ID or one.get("group_name") in ("operators", "users")
    ]
    assert level == max((one for one in ours if one in order), key=order.index, default="")
    if level and entry(level) in entries:
        assert group == ""


# --- The page, and the stand-in


def test_the_page_about_access_says_the_same() -> None:
    page = (ROOT / "docs" / "databricks_access.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| (CAN_\w+) \|", page, re.MULTILINE))
    assert rows == {str(mode): level for mode, level in NEEDED_ON_JOB.items()}
    assert "| CAN_MANAGE | CAN_USE | CAN_ATTACH_TO |" in page


def test_the_stand_in_answers_the_official_client(service: Service) -> None:
    load_jobs(service, 1, 2)
    client = WorkspaceClient(host=service.url, token="token")
    assert client.current_user.me().user_name == "failure-agent@example.com"
    (own, _admins) = client.jobs.get_permissions("1").access_control_list or []
    assert own.user_name == "failure-agent@example.com"
    assert [one.permission_level for one in own.all_permissions or []] == [JobPermissionLevel.CAN_MANAGE]
    assert client.permissions.get("cluster-policies", "P1").object_id == "/cluster-policies/P1"
    service.control("rights", {"permissions": {"jobs/2": [entry("CAN_VIEW", name="somebody-else")]}})
    assert [job.job_id for job in client.jobs.list()] == [1]
    with pytest.raises(PermissionDenied, match="does not have View or Admin or Manage Run or Owner"):
        client.jobs.get(2)
    with pytest.raises(PermissionDenied, match="does not have Manage permissions"):
        client.jobs.get_permissions("2")


def test_the_stand_in_answers_the_official_client_about_service_principals(service: Service) -> None:
    client = WorkspaceClient(host=service.url, token="token")
    at_a_desk(service, IN_WORKSPACE)
    (found,) = client.service_principals.list(filter=f'applicationId eq "{APPLICATION_ID}"')
    assert (found.application_id, [group.display for group in found.groups or []]) == (APPLICATION_ID, ["operators"])
    assert list(client.service_principals.list(filter='applicationId eq "nobody"')) == []
