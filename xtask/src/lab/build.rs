//! Builds the lab's programs from Go modules. One wrapper module requires all three projects, so that the client
//! libraries they share compile once; Go's own build cache makes a later version bump cheaper.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{cache, capture, run};
use crate::tools;

const ETCD: &str = "v3.6.16";
const KUBERNETES: &str = "v1.36.3";
const KWOK: &str = "v0.8.0";

/// Name of the binary, and the package that it is built from.
const PROGRAMS: [(&str, &str); 6] = [
    ("etcd", "./etcd"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
];

/// etcd's module has no command in it that can be built from outside; this is the same three lines.
const ETCD_MAIN: &str = "package main

import (
\t\"os\"

\t\"go.etcd.io/etcd/server/v3/etcdmain\"
)

func main() { etcdmain.Main(os.Args) }
";

/// KWOK does nothing without stages: nodes become ready, leases are renewed, pods run, complete and go.
const KWOK_STAGES: [&str; 5] = [
    "node/fast/node-initialize",
    "node/heartbeat-with-lease/node-heartbeat-with-lease",
    "pod/fast/pod-ready",
    "pod/fast/pod-complete",
    "pod/fast/pod-delete",
];

/// The folder with all programs of these versions; builds what is not there.
pub(super) fn binaries() -> Result<PathBuf> {
    let lab = cache()?.join("lab");
    let bin = lab.join("bin");
    let stamp = bin.join("versions");
    let versions = format!("etcd {ETCD}\nkubernetes {KUBERNETES}\nkwok {KWOK}\n");
    let is_built = || fs::read_to_string(&stamp).is_ok_and(|built| built == versions);
    if is_built() {
        return Ok(bin);
    }
    let _lock = tools::lock("lab-build")?;
    if is_built() {
        return Ok(bin); // Another build finished while we waited for the lock.
    }
    fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
    let module = lab.join("build");
    write_module(&module)?;
    for (place, (name, package)) in PROGRAMS.into_iter().enumerate() {
        eprintln!("[{}/{}] building {name} with Go", place + 1, PROGRAMS.len());
        let begun = Instant::now();
        // Built beside and moved over: a program that runs keeps its old file, and there is never half a program.
        let unfinished = bin.join(format!(".{name}"));
        run(go(&module)?.args(["build", "-ldflags", &link_flags(), "-o"]).arg(&unfinished).arg(package))?;
        fs::rename(&unfinished, bin.join(name)).with_context(|| format!("move {name} into place"))?;
        eprintln!("      {name} took {} s", begun.elapsed().as_secs());
    }
    write_kwok_stages(&module)?;
    fs::write(&stamp, versions).context("write the stamp of the build")?;
    Ok(bin)
}

pub(super) fn kwok_stages() -> Result<PathBuf> {
    Ok(cache()?.join("lab/bin/kwok-stages.yaml"))
}

fn go(module: &Path) -> Result<Command> {
    fs::create_dir_all(module).with_context(|| format!("create {}", module.display()))?;
    let mut go = Command::new("go");
    go.current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=mod -trimpath -buildvcs=false")
        .env("GOWORK", "off");
    Ok(go)
}

/// What `kubectl version` and the servers' `/version` say. Without it they say v0.0.0, and kubectl refuses such a server.
fn link_flags() -> String {
    let minor = KUBERNETES.split('.').nth(1).expect("a version has a minor number");
    let version = "k8s.io/component-base/version";
    format!(
        "-s -w -X {version}.gitVersion={KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor={minor} \
         -X {version}.gitTreeState=clean -X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"
    )
}

fn write_module(module: &Path) -> Result<()> {
    fs::create_dir_all(module.join("etcd")).context("create the wrapper module")?;
    fs::write(module.join("etcd/main.go"), ETCD_MAIN).context("write etcd's main")?;
    let upstream = kubernetes_go_mod(module)?;
    let setting = |name: &str| upstream.lines().find(|line| line.split_whitespace().next() == Some(name));
    let mut text = String::from("module lab.invalid/cluster\n");
    for line in ["go", "godebug"].into_iter().filter_map(setting) {
        writeln!(text, "{line}")?;
    }
    writeln!(text, "require go.etcd.io/etcd/server/v3 {ETCD}")?;
    writeln!(text, "require k8s.io/kubernetes {KUBERNETES}")?;
    writeln!(text, "require sigs.k8s.io/kwok {KWOK}")?;
    // Kubernetes requires its staging modules as v0.0.0 and replaces them by folders of its own repository, which only
    // works inside it. From outside, the same code is published as v0.MINOR.PATCH.
    let published = KUBERNETES.replacen("v1.", "v0.", 1);
    for line in upstream.lines().filter(|line| line.contains("=> ./staging/")) {
        let staging = line.split_whitespace().find(|word| word.starts_with("k8s.io/"));
        let staging = staging.with_context(|| format!("read {line:?} in the go.mod of Kubernetes"))?;
        writeln!(text, "replace {staging} => {staging} {published}")?;
    }
    fs::write(module.join("go.mod"), text).context("write go.mod")
}

/// Downloads Kubernetes and returns its own go.mod.
fn kubernetes_go_mod(module: &Path) -> Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Download {
        go_mod: PathBuf,
    }
    // A go.mod left by an older version must not have a say in this.
    let name = format!("k8s.io/kubernetes@{KUBERNETES}");
    let report =
        capture(go(module)?.env("GO111MODULE", "on").current_dir("/").args(["mod", "download", "-json", &name]))?;
    let download: Download = serde_json::from_str(&report).context("read the report of go mod download")?;
    fs::read_to_string(download.go_mod).context("read the go.mod of Kubernetes")
}

fn write_kwok_stages(module: &Path) -> Result<()> {
    let folder = capture(go(module)?.args(["list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"]))?;
    let stages = Path::new(folder.trim()).join("kustomize/stage");
    let mut text = String::new();
    for stage in KWOK_STAGES {
        let path = stages.join(format!("{stage}.yaml"));
        let stage = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        write!(text, "---\n{stage}")?;
    }
    fs::write(kwok_stages()?, text).context("write the stages of KWOK")
}
