"""What the URL of a workspace tells."""

import pytest

from shared.workspace_hosts import is_azure, workspace_name


@pytest.mark.parametrize(
    ("host", "name", "azure"),
    [
        ("https://adb-1234567890123456.7.azuredatabricks.net", "1234567890123456", True),
        ("https://adb-1234567890123456.7.databricks.azure.us", "1234567890123456", True),
        ("https://dbc-a1b2.cloud.databricks.com", "dbc-a1b2.cloud.databricks.com", False),
        ("http://127.0.0.1:18081", "127.0.0.1-18081", False),
        ("https://[::1]:443", "--1-443", False),
    ],
)
def test_name_and_cloud_of_a_workspace(host: str, name: str, azure: bool) -> None:
    assert (workspace_name(host), is_azure(host)) == (name, azure)
