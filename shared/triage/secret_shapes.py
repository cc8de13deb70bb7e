"""What secrets look like: the forms their issuers give them, the places in commands and calls where they stand, and
how something generated differs from a word, a name, a path or a number."""

import re
from collections.abc import Callable
from typing import NamedTuple

PLACEHOLDER = re.compile(
    r"(?:\$[A-Z_][A-Z0-9_]{1,60}$|(?i:optional|union|list|dict|literal|annotated)\[)|(?i:\*{2,}|x{3,}$|\.{2,}|\[|\{|<|\$(?:[{(]|[a-z_]{1,60}(?:[.:][\w.]{1,60})?$)|%\(|none$|null$|nil$|true$|false$|undefined$|redacted|masked|hidden|removed|"
    r"empty$|n/a$|-+$|unset$|yes$|no$|string$|str$|required$|optional$|expired$|missing$|invalid$|todo$|changeme$|"
    r"(?:hmac[-_]?)?sha-?\d{1,3}(?:with\w{1,10})?$|[hrep]s\d{3}$|"
    r"dbutils\b|os\.|env\b|self\.|config\b|settings\b|args\b|getpass|keyvault|secretscope)"
)
WORD = re.compile(r"[A-Za-z][a-z]{0,30}[.,:;!?]?")
SLUG = re.compile(r"[a-z]{1,24}\d{0,4}(?:[-_./:][a-z]{0,24}\d{0,4}){1,8}")
LOWER_RUN = re.compile(r"[a-z]{6}")
_CAMEL = re.compile(r"[A-Z]?[a-z]{4}|[._/]")


def is_scrap(word: str) -> bool:
    """Whether a word looks like a piece of a secret and not like a word, a class name or a number."""
    if word.endswith("="):
        return True
    if word.isdigit():
        return len(word) >= 6
    has_digit = any(character.isdigit() for character in word)
    has_letter = any(character.isalpha() for character in word)
    if not has_letter or LOWER_RUN.search(word):
        return has_digit and (len(word) >= 24 or not _CAMEL.search(word))
    if any(character in "!#$^*?~" for character in word):
        return True
    has_both_cases = word != word.lower() and word != word.upper() and not word.istitle()
    return has_digit or has_both_cases


def is_path(value: str) -> bool:
    """Base64 may begin with a slash too; a path has words between its slashes."""
    return value.startswith(("/", "./")) and not (
        value.endswith("=") or any(len(part) >= 16 and is_random(part) and "." not in part for part in value.split("/"))
    )


def has_digit_and_letter(value: str) -> bool:
    return any(character.isdigit() for character in value) and any(character.isalpha() for character in value)


def is_random(value: str) -> bool:
    """Upper case, lower case and digits mixed, as encoders make it and people do not."""
    return value != value.lower() and value != value.upper() and any(character.isdigit() for character in value)


def _is_credential(value: str) -> bool:
    """After `Bearer` or `Basic`: a credential and not the next word of a sentence."""
    return len(value) >= 8 and (has_digit_and_letter(value) or value.endswith("=") or len(value) >= 24)


def is_made_up(value: str) -> bool:
    """Without a name before it a password only if no word, number, path, or name with hyphens would look like that."""
    if WORD.fullmatch(value) or SLUG.fullmatch(value) or is_path(value) or PLACEHOLDER.match(value):
        return False
    return has_digit_and_letter(value) or (is_scrap(value) and value.lower() != value.upper())


def _is_anything(_: str) -> bool:
    return True


_ALONE = r"(?<![A-Za-z0-9])"
_END = r"(?![A-Za-z0-9])"


class Shape(NamedTuple):
    """A secret known by its look. `hints`: the expression runs only where one of these stands in the text."""

    kind: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    is_secret: Callable[[str], bool] = _is_anything


def _shape(kind: str, hints: str, pattern: str, is_secret: Callable[[str], bool] = _is_anything) -> Shape:
    return Shape(kind, tuple(hints.split()), re.compile(pattern), is_secret)


# Forms as published by the issuers and in the rules of gitleaks (MIT). The first group, if any, is the secret.
SHAPES = (
    _shape(
        "databricks-token", "dapi dose dkea dsapi", _ALONE + r"d(?:api|ose|kea|sapi)[0-9a-f]{30,40}(?:-\d{1,2})?" + _END
    ),
    _shape("jwt", "eyJ", _ALONE + r"eyJ[\w\-]{8,8000}(?:\.[\w\-]{2,8000}){1,4}={0,2}"),
    _shape("aws-key", "AKIA ASIA ABIA ACCA", _ALONE + r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}" + _END),
    _shape(
        "aws-token",
        "FwoGZXIvYXdz IQoJb3JpZ2lu FQoGZXIvYXdz",
        r"(?:FwoGZXIvYXdz|IQoJb3JpZ2lu|FQoGZXIvYXdz)[\w+/=\-]{20,4000}",
    ),
    _shape(
        "google-key",
        "AIza ya29. GOCSPX- 1//0",
        _ALONE + r"(?:AIza[\w\-]{30,40}|ya29\.[\w\-.]{20,1000}|GOCSPX-[\w\-]{20,40}|1//0[\w\-]{30,200})",
    ),
    _shape(
        "github-token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        _ALONE + r"(?:gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{20,255})",
    ),
    _shape("gitlab-token", "gl", _ALONE + r"gl(?:pat|ptt|dt|rt|cbt|soat|ft|agent|imt|oas)-[\w\-.]{18,300}"),
    _shape("slack-token", "xox xapp-", _ALONE + r"(?:xox[a-z](?:\.xox[a-z])?-[\w\-]{10,250}|xapp-\d-[\w\-]{10,250})"),
    _shape("webhook", "hooks.slack.com", r"hooks\.slack\.com/((?:services|workflows|triggers)/[\w/\-]{8,200})"),
    _shape(
        "webhook",
        "webhook.office.com outlook.office",
        r"(?:webhook\.office\.com|outlook\.office(?:365)?\.com)/((?:webhookb2|webhook)/[\w@/.\-]{8,400})",
    ),
    _shape("webhook", "discord", r"discord(?:app)?\.com/api/webhooks/(\d{5,30}/[\w\-]{20,200})"),
    _shape(
        "stripe-key",
        "_live_ _test_ whsec_",
        _ALONE + r"(?:(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,250}|whsec_[A-Za-z0-9+/=]{20,200})",
    ),
    _shape("sendgrid-key", "SG.", _ALONE + r"SG\.[\w\-]{16,32}\.[\w\-]{16,64}"),
    _shape("npm-token", "npm_", _ALONE + r"npm_[A-Za-z0-9]{30,60}"),
    _shape("pypi-token", "pypi-", _ALONE + r"pypi-Ag[\w\-]{16,1000}"),
    _shape("openai-key", "sk-", _ALONE + r"sk-[\w\-]{20,300}", has_digit_and_letter),
    _shape("huggingface-token", "hf_ api_org_", _ALONE + r"(?:hf|api_org)_[A-Za-z0-9]{28,60}"),
    _shape("twilio-key", "SK AC", _ALONE + r"(?:SK|AC)[0-9a-f]{32}" + _END),
    _shape("mail-service-key", "key- -us", _ALONE + r"(?:key-[0-9a-f]{32}|[0-9a-f]{32}-us\d{1,2})" + _END),
    _shape("shopify-token", "shp", _ALONE + r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    _shape("square-token", "sq0", _ALONE + r"sq0[a-z]{3}-[\w\-]{20,60}"),
    _shape("digitalocean-token", "_v1_", _ALONE + r"do[opr]_v1_[0-9a-f]{32,64}"),
    _shape("atlassian-token", "ATATT3 ATBB ATCTT3", _ALONE + r"AT(?:ATT3|CTT3|BB)[\w=\-]{16,400}"),
    _shape("grafana-token", "glsa_ glc_", _ALONE + r"gl(?:sa|c)_[\w+/=]{20,400}"),
    _shape("newrelic-key", "NRAK- NRII- NRJS-", _ALONE + r"NR(?:AK|II|JS)-[\w\-]{19,50}"),
    _shape("vault-token", "hvs. hvb. hvr.", _ALONE + r"hv[sbr]\.[\w\-]{20,300}"),
    _shape("terraform-token", ".atlasv1.", r"[A-Za-z0-9]{14}\.atlasv1\.[\w\-]{30,100}"),
    _shape("docker-token", "dckr_", _ALONE + r"dckr_(?:pat|oat)_[\w\-]{20,80}"),
    _shape("dbt-token", "dbtc_ dbtu_ dbts_", _ALONE + r"dbt[cus]_[\w+/=\-]{20,100}"),
    _shape("notion-token", "secret_ ntn_", _ALONE + r"(?:secret_[A-Za-z0-9]{40,50}|ntn_[A-Za-z0-9]{40,60})"),
    _shape("linear-key", "lin_", _ALONE + r"lin_(?:api|oauth)_[A-Za-z0-9]{30,80}"),
    _shape("telegram-token", ":AA", _ALONE + r"\d{8,10}:AA[\w\-]{32,34}"),
    _shape("airtable-token", "pat", _ALONE + r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    _shape("postman-key", "PMAK-", _ALONE + r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    _shape("sentry-token", "sntry", _ALONE + r"sntry[su]_[\w+/=\-]{30,300}"),
    _shape("age-key", "AGE-SECRET-KEY-", r"AGE-SECRET-KEY-1[A-Z0-9]{40,70}"),
    _shape("entra-secret", "Q~", r"(?<![\w~.\-])[\w~.\-]{3}\dQ~[\w~.\-]{28,40}"),
    _shape("azure-devops-token", "AZDO", r"[A-Za-z0-9]{70,80}AZDO[A-Za-z0-9]{4}"),
    _shape(
        "azure-key",
        "AzFu AzCa AzSe AIoT ACDb AStg APIM ACR+ AzEv AzSB +ASb +AEh",
        r"(?<![\w+/])[\w+/\-]{20,90}(?:AzFu|AzCa|AzSe|AIoT|ACDb|AStg|APIM|ACR\+|AzEv|AzSB|\+ASb|\+AEh)[\w+/\-]{4,20}={0,2}",
    ),
    _shape(
        "password-hash",
        "$2 $apr1$ $6$ $5$ $1$ $argon2",
        r"\$(?:2[abxy]\$\d\d\$[./A-Za-z0-9]{50,60}|(?:apr1|[156])\$[\w./$=]{16,150}|argon2[id]{1,2}\$[\w./$=,+]{20,200})",
    ),
    _shape(
        "password-hash",
        "SHA MD5 SCRYPT CRYPT PBKDF2",
        r"\{(?:S?SHA\d{0,3}|S?MD5|S?CRYPT|PBKDF2[\w\-]{0,10})\}[\w+/=.$]{12,300}",
    ),
    _shape(
        "ssh-key",
        "AAAA",
        r"\b(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\w{1,12}|sk-[\w\-]{1,20}@openssh\.com)[ +]{1,2}"
        r"(AAAA[\w+/=\-]{20,4000}(?:[ +]{1,2}[^\s\"'@<>,;]{1,64})?(?:@[\w.\-]{1,80})?)",
    ),
    _shape("ssh-key", "b3BlbnNzaC1rZXktdjE", r"b3BlbnNzaC1rZXktdjE[A-Za-z0-9+/=\s]{20,8000}"),
    _shape("credential", "earer", r"[Bb]earer[ +:=\"']{1,4}([\w.~+/=\-]{8,8000})", _is_credential),
    _shape("credential", "BEARER", r"BEARER[ :=\"']{1,4}([\w.~+/=\-]{8,8000})", _is_credential),
    _shape("credential", "asic", r"\b[Bb]asic[ +]([A-Za-z0-9+/]{8,800}={0,2})", _is_credential),
    _shape("credential", "SSWS", r"\bSSWS[ +:=]{1,2}([\w\-]{16,200})"),
    _shape("credential", "cnonce response=", r"\bresponse=[\"']?([0-9a-fA-F]{32,128})" + _END),
    _shape("signature", "Signature=", r"Signature=([\w+/=\-]{20,2000})"),
    _shape(
        "credential",
        "uthorization AUTHORIZATION",
        r"(?:[Aa]uthorization|AUTHORIZATION)[\"']{0,2}\s?[:=,]\s{0,2}[\"']?(?!Digest\b)"
        r"(?:SharedKey(?:Lite)? [\w\-]{1,60}:|[A-Za-z][\w\-]{1,30}[ :]\s?|)(?:token=)?[\"']?([\w.~+/=\-]{8,8000})",
        _is_credential,
    ),
    _shape("password", "://", r"://[^\s/:\"'<>\[\]]{0,128}:((?!\[redacted:)[^\s/\"'<>]{1,300})@(?=[\w\[.\-$*{])"),
    _shape(
        "password",
        "://",
        r"://[^\s/@:\"'<>\[\]]{0,128}:((?!\[redacted:)[^\s@\"'<>]{1,300})@(?=[\w\[\-]{1,60}\.[\w.\-]{2,60}(?:[:/\s\"']|$))",
    ),
    _shape("token", "://", r"://([^\s/@:\"'<>\[\]]{20,300})@(?=[\w.\-])", has_digit_and_letter),
    _shape("password", "oracle:thin:", r"oracle:thin:[^\s/@]{1,80}/([^\s@]{1,128})@"),
    # Programs that take a password without its name.
    _shape(
        "password",
        "curl wget http",
        r"(?:curl|wget|https?)\b[^\n]{0,300}?\s(?:-u|-a|--user)[ =]{0,2}[\"']?[^\s:\"']{1,80}:([^\s\"']{1,200})",
    ),
    _shape(
        "password",
        "lftp smbclient smbget rpcclient",
        r"\b(?:lftp|smb\w{3,6}|rpcclient)\b[^\n]{0,300}?\s(?:-u|-U|--user)[ =]{0,2}[\"']?"
        r"[^\s,%\"']{1,80}[,%]([^\s\"']{1,200})",
    ),
    _shape("password", "ldap", r"\bldap[a-z]{3,10}\b[^\n]{0,300}?\s-w ?[\"']?([^\s\"']{4,128})"),
    _shape(
        "password",
        "mysql sshpass login",
        r"(?:mysql\w{0,10}|sshpass|login)\b[^\n]{0,300}?\s-p ?[\"']?([^\s\"']{4,128})",
    ),
    _shape(
        "password",
        "sqlcmd bcp isql tsql osql zip",
        r"\b(?:sqlcmd|bcp|[iot]sql|(?:un)?zip)\b[^\n]{0,300}?\s-P ?[\"']?([^\s\"'|]{4,128})",
    ),
    _shape(
        "password",
        " -p -P -w -pw",
        r"\s-(?:u|U|n|D|-user(?:name)?)[ =]?[^\s\-]\S{0,200}(?:\s\S{1,200}){0,6}?\s-(?:pw|p|P|w) ?"
        r"[\"']?([^\s\"'|<>\-][^\s\"'|]{3,127})",
        is_made_up,
    ),
    _shape(
        "password",
        "sqlplus expdp impdp sqlldr rman userid=",
        r"\b(?:sqlplus|(?:ex|im)pdp|sqlldr|rman)\b[^\n]{0,200}?[\s=][\"']?[\w$#]{1,30}/([^\s@]{1,128})@",
    ),
    _shape("password", "logon LOGON", r"(?i:\blogon)\s{1,3}\S{1,80}/[\w.\-]{1,64},([^\s;,]{1,128})"),
    _shape("password", " using USING ", r"(?i:connect to \S{1,64} user \S{1,64} using) ([^\s;\"']{4,128})"),
    _shape("password", "pass:", r"\s-pass(?:in|out)? [\"']?pass:([^\s\"']{1,128})"),
    _shape("password", "htpasswd", r"htpasswd -[a-zA-Z]{0,6}b[a-zA-Z]{0,6} \S{1,200} \S{1,64} ([^\s;]{4,128})"),
    _shape("password", "/user:", r"/user:\S{1,80} ([^\s/]\S{3,127})", is_made_up),
    _shape(
        "password",
        "-stdin sudo kinit",
        r"\becho (?:-n )?[\"']?([^\s\"'$|]{4,256})[\"']? ?\| ?(?:[^\n|]{0,80}--password-stdin|sudo -S|kinit)",
    ),
    _shape("password", "AUTH", r"\bAUTH (?:[\w.\-]{1,60} )?([^\s\"']{4,256})", is_made_up),
    _shape(
        "password",
        "login LOGIN",
        r"\b(?:login|LOGIN) \S{1,80}\s{1,4}(?:password|PASSWORD)\s{1,4}(\S{1,128})",
        is_scrap,
    ),
    # Calls and pairs in which the place says what it is.
    _shape(
        "password",
        "auth Auth login redential",
        r"(?:[Aa]uth\w{0,12}|[Cc]redentials?|\blogin)(?:\s?=\s?)?\(\s?(?:[\"'][^\"'\n]{0,200}[\"'],\s{0,20}){1,2}[\"']([^\s\"']{4,400})[\"']",
        is_made_up,
    ),
    _shape(
        "password",
        "ser.info ser_info serinfo serpwd",
        r"user(?:[._]?info|pwd)[\"']?\s?[:=]\s?[\"']?[\w.@+\-]{1,80}:((?!\d+\b)[^\s\"',;&/][^\s\"',;&]{3,200})",
    ),
    _shape(
        "password",
        "redential auth",
        r"(?:[Cc]redentials?|auth)[\"']?\s?[:= ]\s?[\"']?[\w.@+\-]{1,80}:([^\s\"',;&/][^\s\"',;&]{5,200})",
        is_made_up,
    ),
    _shape("secret", "\"kty\" 'kty'", r"[\"'](?:d|p|q|dp|dq|qi|k)[\"']\s?:\s?[\"']([\w\-]{20,2000})[\"']"),
    _shape("key", "appid=", r"[?&]appid=([0-9a-f]{32})" + _END),
    # A secret on its way into a store of secrets.
    _shape(
        "secret",
        "ecret kv vault",
        r"(?:\bsecrets?[/ ](?:put|set|add|version)|\b(?:create|put|set)[ _\-]secret|secretsmanager|\.net/secrets/"
        r"|kv put)[\s\S]{0,300}?(?:(?:string|bytes)[_\-]value|[Ss]ecret[_\-]string|--value|--body|[\"']value[\"']"
        r"|\bvalue(?==)|-literal=[\w.\-]{1,60}(?==))[\"']?\s{0,2}[:= ]\s{0,2}[\"']?((?!\[redacted:)[^\s\"',}]{4,4000})",
    ),
    _shape("password", "SecureString", r"ConvertTo-SecureString (?:-String )?[\"']([^\"'\n]{4,256})[\"']"),
    _shape("secret", "set_secret", r"set_secret\([\"'][^\"'\n]{1,127}[\"'],\s?[\"']([^\"'\n]{4,4000})[\"']"),
    # SQL.
    _shape(
        "password",
        "dentified DENTIFIED",
        r"(?i:identified\s{1,3}by)\s{1,3}(?:(?i:password)\s)?[\"']?([^\s\"';]{1,128})",
    ),
    _shape("password", "PASSWORD", r"SET PASSWORD FOR [^\n=]{1,120}=\s?(?:PASSWORD\()?[\"']([^\"'\n]{1,128})[\"']"),
    _shape(
        "password", "sp_", r"\bsp_\w{0,12}(?:login|password) [^\n']{0,40}'[^'\n]{0,128}',[^\n',]{0,40}'([^'\n]{1,128})'"
    ),
    _shape(
        "password", "OPENROWSET OPENDATASOURCE", r"[\"'];\s?[\"'][^\"'\n]{1,80}[\"'];\s?[\"']([^\"'\n]{1,128})[\"']"
    ),
    _shape(
        "key",
        "crypt CRYPT",
        r"(?i:(?:aes|pgp_sym|try_aes)_(?:en|de)crypt)\([^\n]{1,200}?,\s?[\"']([^\"'\n]{8,256})[\"']",
    ),
    _shape(
        "password",
        "5432: 6432: 3306: 1433: 1521: 5439: pgpass",
        r"(?<![\w.\-*])[\w.\-*]{1,120}:(?:\d{4,5}|\*):[\w*\-]{1,64}:[\w*\-.]{1,64}:((?!\[redacted:|\d{1,5}(?!\S))[^\s\"',]{4,128})",
    ),
    _shape(
        "cookie",
        "ookie COOKIE",
        r"(?:[Cc]ookie|COOKIE)[\"']{0,2}\s?[:=]\s{0,2}[\"']?"
        r"([^\n\"'\s=;]{1,80}=(?!\[redacted:)[^\s;\"']{1,4000}(?:; ?[^\s;\"']{1,4000}){0,40})",
    ),
    _shape(
        "cookie",
        "ARRAffinity AWSALB SESS sessionid SessionId sid csrf CSRF XSRF AspNetCore __Secure- __Host- DATAAPP",
        r"(?<![\w.\-])(?:ARRAffinity(?:SameSite)?|AWSALB\w{0,10}|JSESSIONID|PHPSESSID|ASPSESSIONID\w{0,10}|ASP\.NET_SessionId"
        r"|sessionid|connect\.sid|csrf_?token|_csrf|X?C?SRF-TOKEN|\.AspNetCore\.[\w.]{1,60}|__(?:Secure|Host)-[\w.\-]{1,40}"
        r"|DATAAPP\w{0,10})=[\"']?([\w%+/=.~\-]{16,4000})",
        has_digit_and_letter,
    ),
    _shape("password", "assword", r"[Pp]assword\b[^\n\"'=:]{0,40}[\"']([^\s\"']{6,128})[\"']", is_random),
    _shape("password", "redis", r"(?:redis-cli\b[^\n]{0,200}? -a|\brequirepass)\s{1,4}[\"']?([^\s\"']{4,256})"),
    _shape("key", "=", r"(?<![\w+/=\-])([A-Za-z0-9+/]{86}==)(?![\w=])", is_random),
    _shape("key", "=", r"(?<![\w+/=\-:])([A-Za-z0-9+/]{43}=)(?![\w=])", is_random),
    _shape("azure-devops-token", "", _ALONE + r"[a-z2-7]{52}" + _END, has_digit_and_letter),
)
