"""The rules of scripts that lie among a model's files, and what their lines say."""

from __future__ import annotations

import re
from functools import cache

from ..rules import Rule

SCRIPT = Rule(
    "script", "note", "A script among the model's files",
    "Nothing runs it when the model is loaded; it does what it says when somebody starts it.",
    "Read it before you run it.",
)  # fmt: skip
HOSTILE = Rule(
    "script-hostile", "malicious", "A script that attacks whoever starts it",
    "Lines that hand a shell to another machine, send keys and tokens away, run what is hidden in an encoding, or lay down a "
          "key of "
    "somebody else have no honest use beside a model.",
    "Do not run it. Report it to whoever published it.",
    ("https://attack.mitre.org/techniques/T1059/", "https://attack.mitre.org/techniques/T1552/"),
)  # fmt: skip
RISKY = Rule(
    "script-risky", "suspicious", "A script that runs what it fetches, or stays behind",
    "What another server sends at that moment is run as it comes; or the script enters itself where the system starts it again, or "
    "starts programs from a page or a language that a model has no use for.",
    "Read it, fetch what it fetches and read that, before anything is started.",
    ("https://cwe.mitre.org/data/definitions/494.html",),
)  # fmt: skip
UNREAD = Rule(
    "script-not-read", "unknown", "A script that was not read to its end",
    "What it does may stand behind what this scan read.",
    "Look at why it is so large: honest scripts hold a few kilobytes.",
)  # fmt: skip
RULES = (SCRIPT, HOSTILE, RISKY, UNREAD)

_FETCH = (r"(?:\bcurl\b|\bwget\b|\bfetch\s|\baria2c\b|\birm\b|\biwr\b|Invoke-(?:WebRequest|RestMethod)|DownloadString|DownloadData|"
          r"Net\.WebClient|\bstart-bitstransfer\b)")  # fmt: skip
_SHELLS = r"(?:(?:ba|z|da|k|a|c|tc|fi)?sh|pwsh|powershell|cmd)(?:\.exe)?"
#: a pipe into something that runs what comes through it
_SINK = (r"\|&?\s*(?:sudo\s+(?:-\w+\s+)*)?(?:nohup\s+|exec\s+|command\s+|env\s+(?:\w+=\S*\s+)*)?[\"']?(?:/[\w/.-]{0,40}/)?(?:"
         r"(?:(?:ba|z|da|k|a)?sh|pwsh|powershell)\b(?!\s+-c\b|[\w./-])|"
         r"(?:python[\d.]{0,4}|perl|ruby|node|php)\b(?=\s*(?:-\s*)?(?:$|[;&|)\"'>#]))|(?:iex|Invoke-Expression)\b)")  # fmt: skip
_DECODE = (r"(?:\bbase64\s+(?:-\w*[dD]|--decode)|\bxxd\s+-\w*r|\bopenssl\s+(?:enc|base64)\b[^|\n]{0,60}\s-d|\bbase32\s+-d|"
           r"FromBase64String|\buudecode\b)")  # fmt: skip
_PRIVATE = (r"(?:(?:~|\$\{?HOME\}?|/root|/home/[^/\s]{1,40}|%USERPROFILE%|\$env:USERPROFILE)[/\\]\.?(?:\.?ssh\b|\.?aws\b|\.?netrc|"
            r"\.?git-credentials|\.?kube\b|\.?gnupg\b|\.?docker[/\\]config|\.?huggingface[/\\]token|\.?bash_history|"
            r"\.?config[/\\]gcloud|"
            r"\.?cache[/\\]huggingface[/\\](?:stored_)?tokens?|\.?mozilla\b|\.?config[/\\]google-chrome)|\bid_(?:rsa|ed25519|"
            r"ecdsa)\b|"
            r"/etc/shadow\b|\bwallet\.dat\b)")  # fmt: skip
_SENDS = (r"(?:\bcurl\b(?:(?!curl)[^\n]){0,300}\s(?:-F|-d|-T|--form|--data(?:-\w+)?|--upload-file|--json|-X\s*(?:POST|PUT))|"
      r"\bwget\b(?:(?!wget)[^\n]){0,300}--post|"
          r"\|\s*(?:nc|ncat|netcat|telnet)\b|\b(?:nc|ncat|netcat)\s[^\n|]{0,200}<|>\s*/dev/tcp/|"
          r"Invoke-(?:RestMethod|WebRequest)\b(?:(?!Invoke-)[^\n]){0,300}-Method\s+P|Upload(?:String|File|Data)\b)")  # fmt: skip
_TOKENS = (r"\$(?:\{|env:)?(?:HF_TOKEN|HUGGING_?FACE_HUB_TOKEN|AWS_SECRET_ACCESS_KEY|OPENAI_API_KEY|GITHUB_TOKEN|"
           r"ANTHROPIC_API_KEY)\b")  # fmt: skip


Said = tuple[str, tuple[re.Pattern[str], ...]]


def _line(what: str, *parts: str) -> tuple[str, ...]:
    return what, *parts


@cache
def attacks() -> tuple[Said, ...]:
    """What a line says, by all of its patterns, that nothing honest says."""
    return _made(_ATTACKS)


@cache
def risks() -> tuple[Said, ...]:
    """And what is not usual."""
    return _made(_RISKS)


def _made(lines: tuple[tuple[str, ...], ...]) -> tuple[Said, ...]:
    """Patterns are made when the first script is seen: it takes longer than a small folder."""
    return tuple((line[0], tuple(re.compile(part, re.IGNORECASE) for part in line[1:])) for line in lines)


_ATTACKS = (
    _line("hands a shell to another machine", rf"\b{_SHELLS}\s+-i\b", r"/dev/(?:tcp|udp)/|\|\s*(?:nc|ncat|netcat|telnet)\b|socket"),
    _line("hands a shell to another machine", r"\b(?:nc|ncat|netcat)(?:\.exe|\.traditional)?\s(?:(?!\bnc)[^\n|;]){0,120}?"
          rf"(?:-\w{{0,6}}[ec]|--(?:sh-)?exec)\s+[\"']?(?:/[\w/.-]{{0,30}})?{_SHELLS}\b"),
    _line("hands a shell to another machine", r"\bsocat\b", rf"\bexec:[\"']?[^\n]{{0,40}}\b{_SHELLS}\b"),
    _line("hands a shell to another machine", r"\b(?:python[\d.]*|perl|ruby|php|lua|node|awk)\b", r"\bsocket\b|/inet/tcp/",
          rf"\bdup2\b|/bin/{_SHELLS}|pty\.spawn|open\(STDIN|cmd\.exe|getline"),
    _line("hands a shell to another machine", r"\bmk(?:fifo|nod)\b", rf"\b{_SHELLS}\b[^\n]{{0,80}}\|\s*(?:nc|ncat|netcat|"
          rf"telnet|openssl)\b"),
    _line("runs what is hidden in an encoding", _DECODE, _SINK),
    _line("runs what is hidden in an encoding", r"\b(?:eval|source|iex|Invoke-Expression)\b|\b(?:ba|z|da|k)?sh\s+(?:-c|<<<|"
          r"<\()", _DECODE),
    _line("runs what is hidden in an encoding", r"\b(?:powershell|pwsh)(?:\.exe)?\b[^\n]{0,200}\s[-/]e(?:c|n|nc|"
          r"nco\w*)?\s+[A-Za-z0-9+/=]{8}"),
    _line("runs what is hidden in an encoding", r"\beval\s*\(\s*(?:Buffer\.from|atob|unescape|base64_decode|gz\w+|str_rot13|"
          r"hex2bin)\b"),
    _line("runs what is hidden in an encoding", r"\bnew\s+Function\s*\(\s*(?:Buffer\.from|atob)\b"),
    _line("sends keys or tokens away", _PRIVATE, _SENDS),
    _line("sends the environment away", r"(?:^|[;&|(`]\s*)(?:env|printenv|set|export -p)\s*\|", _SENDS),
    _line("sends the environment away", r"\bcurl\b|\bwget\b|\bnc\b", r"\$\((?:env|printenv)\b[^)\n]{0,80}\)"),
    _line("runs what the sender of a request says", r"\b(?:system|exec|shell_exec|passthru|popen|proc_open|eval|assert|"
          r"create_function)\s*"
          r"\(\s*[^;\n]{0,80}\$_(?:GET|POST|REQUEST|COOKIE|SERVER|FILES)\b"),
    _line("runs what the sender of a request says", r"`[^`\n]{0,80}\$_(?:GET|POST|REQUEST|COOKIE)\b"),
    _line("lays down a key for somebody else", r">>?\s*\S*authorized_keys|\btee\b[^\n]{0,80}authorized_keys", r"ssh-(?:rsa|"
          r"ed25519|dss) AAAA"),
    _line("stays behind, and runs what it fetches", r"\bcrontab\b|/etc/cron|>>\s*\S*/\.(?:bash|zsh)?(?:rc|profile|_profile|"
          r"env)\b|schtasks",
          rf"{_FETCH}|/dev/tcp/|\bbase64\b|\bnc\s", rf"{_SINK}|-o\s*/tmp|/dev/tcp/|IEX"),
    _line("loads itself into every program", r">>?\s*/etc/ld\.so\.preload"),
    _line("fetches a page and runs it", r"\bmshta(?:\.exe)?\s+[\"']?(?:https?:|javascript:|vbscript:)|"
          r"\bregsvr32\b[^\n]{0,60}/i:https?:|"
          r"\brundll32\b[^\n]{0,60}javascript:"),
    _line("deletes everything", r"\brm\s+-\w*(?:rf|fr)\w*\s+(?:--no-preserve-root\s+)?[\"']?(?:/|/\*|~|~/|~/\*|"
          r"\$HOME/?)[\"']?\s*(?:$|[;&|]|--no-pres)"),
    _line("stops the machine", r":\s*\(\)\s*\{\s*:\s*\|\s*:\s*&\s*\}"),
)  # fmt: skip
_RISKS = (
    _line("runs what it fetches", _FETCH, _SINK),
    _line("runs what it fetches", rf"(?:\b(?:ba|z|da|k)?sh|\bsource|^\s*\.|\beval|python[\d.]*)\s+(?:-\w+\s+)?(?:<\(|"
          rf"[\"']?(?:\$\(|`))\s*{_FETCH}"),
    _line("runs what it fetches", rf"(?:\bIEX\b|Invoke-Expression)[^\n]{{0,200}}{_FETCH}|{_FETCH}[^\n]{{0,300}}\|\s*(?:IEX\b|"
          rf"Invoke-Expression)"),
    _line("runs what it fetches", r"\bsource\s*\(\s*[\"']https?://"),
    _line("fetches by a way that hides it", r"\bcertutil\b[^\n]{0,80}-urlcache|\bbitsadmin\b[^\n]{0,80}/transfer"),
    _line("hides its window", r"\b(?:powershell|pwsh)(?:\.exe)?\b[^\n]{0,200}\s-w(?:in\w*)?\s+(?:hidden|1)\b"),
    _line("has itself started again", r"\|\s*crontab\b|\bcrontab\s+(?!-[lre]\b)\S|>>?\s*/etc/(?:cron|rc\.local|init\.d)|"
          r"\bschtasks\b[^\n]{0,80}/create|"
          r"CurrentVersion\\+Run\b|Start Menu\\+Programs\\+Startup"),
    _line("lets a key in", r">>?\s*\S*authorized_keys|\btee\b[^\n]{0,80}authorized_keys"),
    _line("sends a token away", rf"\s(?:-F|-d|--form|--data(?:-\w+)?)\s*\S?[^\n\"' ]{{0,40}}{_TOKENS}"),
    _line("opens a connection by the shell's own means", r"<>\s*/dev/tcp/(?!localhost|127\.0\.0\.1|\$)"),
    _line("switches a protection off", r"Add-MpPreference\b[^\n]{0,80}-Exclusion|"
          r"Set-MpPreference\b[^\n]{0,80}-Disable\w+\s+\$?(?:true|1)"),
)  # fmt: skip
#: installers that are meant to be piped into a shell, by those who publish them, over a connection that is checked
_INSTALLERS = (
    r"(?<![\w.:/@-])https://(?:ollama\.(?:com|ai)/install\.sh|sh\.rustup\.rs|astral\.sh/(?:uv|ruff)/[\w./-]*install\.(?:sh|ps1)|"
    r"get\.docker\.com|raw\.githubusercontent\.com/(?:Homebrew/install|nvm-sh/nvm)/[\w./-]+|install\.python-poetry\.org|"
    r"deb\.nodesource\.com/\w+\.x|pyenv\.run|bun\.sh/install|hf\.co/cli/install\.(?:sh|ps1)|micro\.mamba\.pm/install\.sh|"
    r"community\.chocolatey\.org/install\.ps1|packagecloud\.io/install/repositories/github/git-lfs/script\.\w+\.sh)(?![\w./?@:-])")
_ADDRESS = r"\b(?:https?|ftp)://[^\s\"'`|)>;]+"
_SECRET = (rf"\b([A-Za-z_]\w{{0,40}})=[^\n]{{0,200}}?{_PRIVATE}|\b([A-Za-z_]\w{{0,40}})=[\"']?(?:\$\(|`)\s*(?:env|printenv)\b")
_WORTH = (
    r"/dev/(?:tc|ud)p|\bnc\b|ncat|netcat|socat|socket|mkfifo|mknod|base(?:64|32)|xxd|openssl|uudecode|curl|wget|fetch|aria2c|"
          r"irm|iwr|"
    r"invoke-|download|webclient|bitstransfer|powershell|pwsh|eval|\biex\b|new\s+function|\$_|cron|authorized_keys|preload|mshta|"
    r"regsvr32|rundll32|\brm\s|:\s*\(\)|certutil|bitsadmin|schtasks|currentversion|startup|mppreference|child_process|"
    r"wscript|shell\.application|system2?\s*\(|shell\s*\(|source\s*\(|tcpclient|\.ssh|\.aws|shadow|\benv\b|printenv|_token|_key")


@cache
def pattern(name: str) -> re.Pattern[str]:
    """One of the patterns that are not for a line as a whole: ``installers``, ``address``, ``secret``, ``sends``, ``worth`` (what
    must stand in a line before it is looked at)."""
    return re.compile({"installers": _INSTALLERS, "address": _ADDRESS, "secret": _SECRET, "sends": _SENDS, "worth": _WORTH}[name],
                      re.IGNORECASE)  # fmt: skip
