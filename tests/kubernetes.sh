#!/usr/bin/env bash
# Puts the manifests of deploy/kubernetes/ together and holds them against
# Kubernetes' own schemas. No cluster is needed, and none is asked.
#
# By hand, not part of ./test: it needs kubectl (or kustomize), and python3
# with pip, which brings kubernetes-validate and the schemas in it.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if command -v kustomize >/dev/null; then
    kustomize build deploy/kubernetes >"$work/all.yaml"
else
    kubectl kustomize deploy/kubernetes >"$work/all.yaml"
fi
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'kubernetes-validate>=1.30' pyyaml

# The oldest version they are meant for, and the newest there is a schema of.
for version in 1.30 ''; do
    echo "-- Kubernetes ${version:-newest}"
    "$work/venv/bin/kubernetes-validate" --strict ${version:+-k "$version"} "$work/all.yaml"
done

# What a schema cannot see: names that must meet.
"$work/venv/bin/python" - "$work/all.yaml" deploy/nats/users.conf <<'TEXT'
import re, sys, yaml
docs = [doc for doc in yaml.safe_load_all(open(sys.argv[1])) if doc]
users = set(re.findall(r"user: (\w+)", open(sys.argv[2]).read()))
made = {(doc["kind"], doc["metadata"]["name"]) for doc in docs}
# The role that only looks is the user that may only look.
user_of = {"verify": "auditor"}
pods = {
    doc["metadata"]["name"]: doc["spec"]["template"]
    for doc in docs if doc["kind"] in ("Deployment", "Job")
}
for name, pod in pods.items():
    (container,) = pod["spec"]["containers"]
    for source in container["envFrom"]:
        assert ("ConfigMap", source["configMapRef"]["name"]) in made, f"{name}: {source}"
    urls = [e["value"] for e in container["env"] if e["name"] == "QIYU_NATS_URL"]
    user = user_of.get(name, name)
    assert len(urls) == 1 and urls[0].startswith(f"nats://{user}:"), f"{name}: {urls}"
    assert user in users, f"{user} is no user of the bus"
    (password,) = [e for e in container["env"] if e["name"] == "NATS_PASSWORD"]
    key = password["valueFrom"]["secretKeyRef"]["key"]
    assert key == f"NATS_{user.upper()}_PASSWORD", f"{name}: {key}"
    for env in container["env"]:
        plain = env["name"].endswith(("PASSWORD", "SECRET", "KEY", "DATABASE_URL", "REDIS_URL"))
        assert not plain or "valueFrom" in env, f"{name}: {env['name']} is written out"
for doc in docs:
    spec, name = doc.get("spec", {}), doc["metadata"]["name"]
    if doc["kind"] == "PodDisruptionBudget":
        wanted = spec["selector"]["matchLabels"]
    elif doc["kind"] == "Service":
        wanted = spec["selector"]
    elif doc["kind"] == "HorizontalPodAutoscaler":
        assert spec["scaleTargetRef"]["name"] in pods, name
        continue
    else:
        continue
    met = [pod for pod in pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
    assert met, f"{doc['kind']} {name} selects no pod"
print("names meet")
TEXT
