#!/usr/bin/env bash
# Fetch what is new from a list of sources: the line for cron.
#   17 * * * * bash /path/to/recipes/refresh.sh /path/to/FOLDER
# FOLDER has:  sources.txt   what to fetch, one source per line
#              environment   optional: shell variables for this job, such as PATH, HTTPS_PROXY, VTOOLS_CONTACT, or
#                            OPTIONS="--rate 0.5 -j 4" and ROTATE_MB=512
# and gets:    chats.jsonl   what is new or changed since the first run; begun afresh once it has ROTATE_MB (1024), and
#                            the old one kept as chats-DATE.jsonl.gz
#              crawl.db      what was seen: vtools stats crawl.db
#              rejects.jsonl what the last run could not read or get; refresh.log: a line per run, the last 1,000
# Prints one line. Exits with 75 while another run has the folder.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "${1:?usage: bash refresh.sh FOLDER}"
export LC_ALL=C.UTF-8 PATH="$here/../.venv/bin:${PATH:-/usr/local/bin:/usr/bin:/bin}"
set -a
# shellcheck source=/dev/null
[ ! -f environment ] || . ./environment
set +a

say() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$1" | tee -a refresh.log; }
exec 9> .refresh.lock
flock -n 9 || { say "another run has this folder"; exit 75; }

if [ -f chats.jsonl ] && [ "$(stat -c %s chats.jsonl)" -ge "$((${ROTATE_MB:-1024} * 1000000))" ]; then
    kept=chats-$(date -u +%Y%m%dT%H%M%SZ).jsonl
    mv chats.jsonl "$kept" && gzip "$kept"
fi

status=0
# shellcheck disable=SC2086  # OPTIONS are several words
said=$(vtools fetch --sources sources.txt --state crawl.db --append chats.jsonl --rejects rejects.jsonl ${OPTIONS:-} \
    2>&1 > /dev/null 9>&- < /dev/null) || status=$?
say "${said##*$'\n'}"
tail -n 1000 refresh.log > .refresh.log && mv .refresh.log refresh.log
exit "$status"
