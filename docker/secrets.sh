#!/bin/sh
# Makes the passwords of compose.yaml, once: docker/secrets.sh [FOLDER]   (.run/secrets)
#
# They are files, so that no password stands in an environment or in `docker inspect`. The folder is its owner's
# alone; the files in it can be read by anybody, for inside the containers programs run as several users, and each
# sees only the files that its service names. GAELP_NAMESPACE, as in compose.yaml, goes into Redis' rules.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../.run/secrets}
namespace=${GAELP_NAMESPACE:-}

if [ -e "$folder" ]; then
  echo "$folder is kept as it is: remove it, and the volume of PostgreSQL, to begin with other passwords."
  exit 0
fi
case $namespace in
  *[!A-Za-z0-9_.:-]*)
    echo "GAELP_NAMESPACE may hold letters, digits and _ . : - only." >&2
    exit 2
    ;;
esac

password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
digest() { printf %s "$1" | { sha256sum 2>/dev/null || shasum -a 256; } | cut -d ' ' -f 1; }

umask 077
mkdir -p "$(dirname "$folder")"
new=$(mktemp -d "$(dirname "$folder")/secrets.XXXXXX")
trap 'rm -rf "$new"' EXIT
put() { printf '%s\n' "$2" >"$new/$1"; }

# each user's patterns carry the namespace, but for Redis' own channel; passwords are there as digests only
rules="s/\\([~&]\\)/\\1$namespace/g; s/&${namespace}__redis__/\\&__redis__/"
for user in worker beat producer api reader metrics; do
  secret=$(password)
  put "${user}_broker_url" "redis://$user:$secret@redis:6379/0"
  rules="$rules; s/@$user@/$(digest "$secret")/"
done
secret=$(password)
put redis_health "$secret"
rules="$rules; s/@health@/$(digest "$secret")/"
secret=$(password)
put redis_backup "$secret"
rules="$rules; s/@backup@/$(digest "$secret")/"
sed "$rules" "$here/redis/users.acl" >"$new/redis_users"

secret=$(password)
put postgres_password "$secret"
put database_url "postgresql://gaelp:$secret@postgres:5432/gaelp"
put flower_login "me:$(password)"
put grafana_password "$(password)"
# tokens of the API are signed by the first, secrets of agents sealed by the second: docs/cluster.md says how to change them
put jwt_secret "$(password)"
put secret_keys "$(head -c 32 /dev/urandom | base64 | tr -d '\n')"

chmod 644 "$new"/*
mv "$new" "$folder"
trap - EXIT
echo "The passwords are in $folder; flower_login and grafana_password are yours."
