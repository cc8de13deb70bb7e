"""What the URL of a Databricks workspace tells about it."""

import re
from urllib.parse import urlsplit

AZURE_DOMAINS = (".azuredatabricks.net", ".databricks.azure.us", ".databricks.azure.cn")


def workspace_name(host: str) -> str:
    r"""Short stable name of a workspace, free of the characters that a table key may not hold (`/ \ # ?`).

    The workspace id where the URL tells it (`https://adb-<id>.<n>.azuredatabricks.net`), else `host` or `host-port`.
    """
    url = urlsplit(host)
    hostname = url.hostname or ""
    if found := re.match(r"adb-(\d+)\.", hostname):
        return found[1]
    name = hostname if url.port is None else f"{hostname}-{url.port}"
    return name.replace(":", "-")  # an IPv6 address


def is_azure(host: str) -> bool:
    """Whether the host is an Azure Databricks workspace, so that Entra tokens are good there."""
    return (urlsplit(host).hostname or "").endswith(AZURE_DOMAINS)
