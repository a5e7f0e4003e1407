//! The Kubernetes side of a lab: etcd, the three control-plane processes and KWOK, with the flags that suit a throw-away.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Lab, build, daemon, pki};

/// Where each part of a lab listens, always on loopback.
pub(super) struct Ports {
    etcd: u16,
    etcd_peer: u16,
    pub(super) api: u16,
    scheduler: u16,
    controllers: u16,
    kwok: u16,
    pub(super) aws: u16,
}

impl Ports {
    pub(super) const DEFAULT_BASE: u16 = 17_400;
    pub(super) const BLOCK: usize = 10;

    pub(super) fn from_base(base: u16) -> Self {
        Self {
            etcd: base,
            etcd_peer: base + 1,
            api: base + 2,
            scheduler: base + 3,
            controllers: base + 4,
            kwok: base + 5,
            aws: base + 6,
        }
    }

    pub(super) fn all(&self) -> [u16; 7] {
        [self.etcd, self.etcd_peer, self.api, self.scheduler, self.controllers, self.kwok, self.aws]
    }
}

/// Starts everything and returns when each part says that it is ready.
pub(super) fn start(
    lab: &Lab,
    ports: &Ports,
    apiserver_args: &[String],
    controller_manager_args: &[String],
) -> Result<()> {
    start_etcd(lab, ports)?;
    start_apiserver(lab, ports, apiserver_args)?;
    daemon::wait_ready(&lab.dir, "kube-apiserver", || {
        accepts(ports.api) && lab.kubectl_succeeds(&["get", "--raw=/readyz"])
    })?;
    start_scheduler(lab, ports)?;
    start_controllers(lab, ports, controller_manager_args)?;
    start_kwok(lab, ports)?;
    daemon::wait_ready(&lab.dir, "kube-scheduler", || accepts(ports.scheduler) && is_ready(lab, ports.scheduler))?;
    // The controllers say that they are ready before they have done anything; a pod needs this account.
    daemon::wait_ready(&lab.dir, "kube-controller-manager", || {
        accepts(ports.controllers) && lab.kubectl_succeeds(&["get", "serviceaccount", "default"])
    })?;
    daemon::wait_ready(&lab.dir, "kwok", || http_get(ports.kwok, "/healthz").is_ok_and(|status| status == 200))
}

fn start_etcd(lab: &Lab, ports: &Ports) -> Result<()> {
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    let peer = format!("http://127.0.0.1:{}", ports.etcd_peer);
    let mut etcd = Command::new(lab.bin.join("etcd"));
    etcd.arg("--name=lab")
        .arg(format!("--data-dir={}", lab.dir.join("etcd").display()))
        .arg("--unsafe-no-fsync") // The data end with the lab.
        .arg("--quota-backend-bytes=4294967296") // Thousands of nodes and pods with their events.
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=lab={peer}"))
        .arg("--log-level=warn");
    daemon::start(&lab.dir, "etcd", &mut etcd)
}

fn start_apiserver(lab: &Lab, ports: &Ports, more: &[String]) -> Result<()> {
    let mut apiserver = Command::new(lab.bin.join("kube-apiserver"));
    apiserver
        .arg(format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd))
        .arg("--bind-address=127.0.0.1")
        .arg(format!("--secure-port={}", ports.api))
        // A documentation address: loopback is refused here, and nothing in a lab dials the `kubernetes` Service.
        .args(["--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"])
        .arg("--service-cluster-ip-range=10.96.0.0/16")
        .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
        .arg("--allow-privileged=true")
        // The agent acts on its own node through this gate; it is on by default in 1.36, and a lab must not lose it.
        .arg("--feature-gates=ConstrainedImpersonation=true")
        .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
        .arg(format!("--requestheader-allowed-names={}", pki::FRONT_PROXY))
        .args(["--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group"])
        .arg("--requestheader-extra-headers-prefix=X-Remote-Extra-")
        .arg("--profiling=false");
    for (flag, file) in [
        ("client-ca-file", "ca.crt"),
        ("proxy-client-cert-file", "front-proxy.crt"),
        ("proxy-client-key-file", "front-proxy.key"),
        ("requestheader-client-ca-file", "front-ca.crt"),
        ("service-account-key-file", "tokens.pub"),
        ("service-account-signing-key-file", "tokens.key"),
    ] {
        apiserver.arg(pki_flag(lab, flag, file));
    }
    daemon::start(&lab.dir, "kube-apiserver", apiserver.args(serving(lab)).args(more))
}

fn start_scheduler(lab: &Lab, ports: &Ports) -> Result<()> {
    let kubeconfig = component_kubeconfig(lab, "kube-scheduler");
    let config = lab.dir.join("conf/kube-scheduler.json");
    let text = json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": false},
        "clientConnection": {"kubeconfig": kubeconfig, "qps": 2000, "burst": 4000},
    });
    fs::write(&config, text.to_string()).context("write the scheduler's configuration")?;
    let mut scheduler = Command::new(lab.bin.join("kube-scheduler"));
    scheduler
        .arg(format!("--config={}", config.display()))
        .arg("--bind-address=127.0.0.1")
        .arg(format!("--secure-port={}", ports.scheduler))
        .args(delegated(&kubeconfig))
        .args(serving(lab));
    daemon::start(&lab.dir, "kube-scheduler", &mut scheduler)
}

fn start_controllers(lab: &Lab, ports: &Ports, more: &[String]) -> Result<()> {
    let kubeconfig = component_kubeconfig(lab, "kube-controller-manager");
    let mut controllers = Command::new(lab.bin.join("kube-controller-manager"));
    controllers
        .arg(format!("--kubeconfig={kubeconfig}"))
        .arg("--bind-address=127.0.0.1")
        .arg(format!("--secure-port={}", ports.controllers))
        .args(["--leader-elect=false", "--use-service-account-credentials=true"])
        .args(["--kube-api-qps=1000", "--kube-api-burst=2000"])
        // A new node keeps its not-ready taint until the next pass: at the default of 5 s, half of what a test waits for.
        .arg("--node-monitor-period=1s")
        .arg(pki_flag(lab, "service-account-private-key-file", "tokens.key"))
        .arg(pki_flag(lab, "root-ca-file", "ca.crt"))
        .arg(pki_flag(lab, "cluster-signing-cert-file", "ca.crt"))
        .arg(pki_flag(lab, "cluster-signing-key-file", "ca.key"))
        .args(delegated(&kubeconfig))
        .args(serving(lab))
        .args(more);
    daemon::start(&lab.dir, "kube-controller-manager", &mut controllers)
}

fn start_kwok(lab: &Lab, ports: &Ports) -> Result<()> {
    let more = lab.dir.join("conf/kwok.yaml");
    fs::write(&more, include_str!("kwok.yaml")).context("write KWOK's configuration")?;
    let mut kwok = Command::new(lab.bin.join("kwok"));
    kwok.arg(format!("--kubeconfig={}", component_kubeconfig(lab, "kwok")))
        .arg(format!("--config={}", build::kwok_stages()?.display()))
        .arg(format!("--config={}", more.display()))
        .arg("--manage-all-nodes=false")
        .arg("--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake")
        .args(["--cidr=10.0.0.1/16", "--node-ip=192.0.2.2", "--node-lease-duration-seconds=40"])
        .arg(format!("--server-address=127.0.0.1:{}", ports.kwok));
    daemon::start(&lab.dir, "kwok", &mut kwok)
}

/// All servers of a lab show the same certificate.
fn serving(lab: &Lab) -> [String; 2] {
    [pki_flag(lab, "tls-cert-file", "server.crt"), pki_flag(lab, "tls-private-key-file", "server.key")]
}

/// Callers of the scheduler's and the controllers' own ports are checked by the API server.
fn delegated(kubeconfig: &str) -> [String; 2] {
    [format!("--authentication-kubeconfig={kubeconfig}"), format!("--authorization-kubeconfig={kubeconfig}")]
}

fn pki_flag(lab: &Lab, flag: &str, file: &str) -> String {
    format!("--{flag}={}", lab.dir.join("pki").join(file).display())
}

fn component_kubeconfig(lab: &Lab, name: &str) -> String {
    lab.dir.join("conf").join(format!("{name}.kubeconfig")).to_string_lossy().into_owned()
}

fn is_ready(lab: &Lab, port: u16) -> bool {
    lab.kubectl_succeeds(&[&format!("--server=https://127.0.0.1:{port}"), "get", "--raw=/readyz"])
}

/// Cheap to ask, so that kubectl is only started against a server that listens.
fn accepts(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The status of a plain GET: all that a readiness check needs, so no HTTP library for it.
pub(super) fn http_get(port: u16, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut reply = [0; 12]; // "HTTP/1.1 200"
    stream.read_exact(&mut reply)?;
    Ok(str::from_utf8(&reply[9..])?.parse()?)
}
