//! Real Ray: a head, workers and programs, as processes that know of no network but loopback.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::Value;

use crate::{Lab, Program, binary, wait_until};

/// A head takes five seconds, where nothing else runs.
const SOON: Duration = Duration::from_secs(120);
const PORT: u16 = 6379;

/// From here on this thread, and all that it starts, has a network of its own with nothing but loopback: else Ray would
/// find the machine's own address and listen on it. For tests that keep to one thread, as `tokio::test` does by itself.
/// Needs root. What needs the real network (programs that are not in the cache) is made before.
pub fn own_network() {
    for program in ["build", "ray"] {
        let made = Command::new(binary("xtask")).args(["lab", program]).output().expect("xtask starts");
        assert!(made.status.success(), "xtask lab {program}: {}", String::from_utf8_lossy(&made.stderr));
    }
    // SAFETY: no file descriptor is concerned, as by `CLONE_FILES`.
    #[expect(unsafe_code, reason = "rustix has no safe call for one thread's namespace")]
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("root may have a network namespace");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2 is installed");
    assert!(up.success(), "loopback comes up");
}

/// A Ray cluster. Its parts are stopped on drop.
pub struct Ray {
    bin: PathBuf,
    token: Option<String>,
    /// Of the RayCluster, where Ray's own autoscaler runs.
    autoscaled: Option<String>,
    autoscaler: Option<Program>,
    tls: Option<Tls>,
    /// Sockets lie in it, whose paths must be short.
    temp: PathBuf,
    head: Option<Program>,
    /// By their pods.
    workers: BTreeMap<String, Program>,
    addresses: u32,
}

/// Files in PEM, by which whoever has them is known to all of a cluster.
#[derive(Clone)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Tls {
    /// A certificate for loopback, of a CA that has made no other.
    pub fn make(folder: &Path) -> Self {
        let ca_key = KeyPair::generate().expect("a key is made");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // By the name that both would have without, the certificate would be taken for one that has signed itself.
        ca.distinguished_name.push(DnType::CommonName, "the tests' CA");
        let ca_pem = ca.self_signed(&ca_key).expect("a CA is made").pem();
        let key = KeyPair::generate().expect("a key is made");
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("these are names");
        params.distinguished_name.push(DnType::CommonName, "ray");
        let cert = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("a certificate is made");
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("the folder takes a file");
            path
        };
        let (ca, cert) = (write("ray-ca.crt", ca_pem), write("ray.crt", cert.pem()));
        Self { ca, cert, key: write("ray.key", key.serialize_pem()) }
    }
}

impl Ray {
    /// With its head, on which nothing can run. `token`: what it asks everybody for.
    pub async fn start(lab: &Lab, token: Option<&str>) -> Self {
        Self::start_with(lab, token, None, None).await
    }

    /// The same, where all must show a certificate.
    pub async fn start_encrypted(lab: &Lab, tls: &Tls) -> Self {
        Self::start_with(lab, None, Some(tls.clone()), None).await
    }

    /// With Ray's own autoscaler for KubeRay (its second version), as the head's second container.
    pub async fn start_autoscaled(lab: &Lab, cluster: &str) -> Self {
        let mut ray = Self::start_with(lab, None, None, Some(cluster.to_owned())).await;
        let mut command = lab.command(ray.bin.join("ray"));
        command.args(["kuberay-autoscaler", "--cluster-name", cluster, "--cluster-namespace", "default"]);
        command.args(["--gcs-address", &ray.address()]);
        ray.set_environment(&mut command);
        let url = lab.server.clone();
        let (host, port) = url.trim_start_matches("https://").rsplit_once(':').expect("a server has a port");
        command.env("KUBERNETES_SERVICE_HOST", host).env("KUBERNETES_SERVICE_PORT_HTTPS", port);
        let kubeconfig = std::fs::read_to_string(&lab.kubeconfig).expect("the lab has its admin's");
        let kubeconfig: Value = serde_json::from_str(&kubeconfig).expect("it is JSON");
        let user = |file: &str| kubeconfig["users"][0]["user"][file].as_str().unwrap_or_default().to_owned();
        command.env("RAY_KUBERAY_CLIENT_CERT_PATH", user("client-certificate"));
        command.env("RAY_KUBERAY_CLIENT_KEY_PATH", user("client-key")).env("RAY_KUBERAY_CA_CERT_PATH", &lab.ca_file);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", ray.bin.display()));
        ray.autoscaler = Some(lab.spawn("ray-autoscaler", command));
        ray
    }

    async fn start_with(lab: &Lab, token: Option<&str>, tls: Option<Tls>, autoscaled: Option<String>) -> Self {
        let found = Command::new(binary("xtask")).args(["lab", "ray"]).output().expect("xtask starts");
        let bin = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
        let name = lab.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let short: String = name.chars().rev().take(12).collect();
        let temp = std::env::temp_dir().join(format!("ray-{}", short.chars().rev().collect::<String>()));
        let token = token.map(str::to_owned);
        let (head, autoscaler, workers) = (None, None, BTreeMap::new());
        let mut ray = Self { bin, token, tls, autoscaled, autoscaler, temp, head, workers, addresses: 0 };
        ray.start_head(lab).await;
        ray
    }

    /// As the coordinator finds it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{PORT}")
    }

    pub async fn start_head(&mut self, lab: &Lab) {
        let mut command = self.isolated(lab);
        command.args(["--head", "--num-cpus=0", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]);
        command.arg(format!("--port={PORT}")).arg("--temp-dir").arg(&self.temp);
        if let Some(cluster) = &self.autoscaled {
            command.arg("--no-monitor").env("RAY_CLOUD_INSTANCE_ID", format!("{cluster}-head"));
            command.env("RAY_NODE_TYPE_NAME", "headgroup");
        }
        self.head = Some(lab.spawn("ray-head", command));
        let listens = async || tokio::net::TcpStream::connect(self.address()).await.is_ok();
        wait_until("Ray's head to listen", SOON, listens, async || lab.log("ray-head")).await;
    }

    /// SIGKILL for all of it, as when its node dies.
    pub fn kill_head(&mut self) {
        self.head.take().expect("it was started").kill();
    }

    /// The container of a worker's pod, with what KubeRay tells it of the pod. Its GPUs are declared, and not there.
    pub fn start_worker(&mut self, lab: &Lab, pod: &str, group: &str, (cpus, gpus): (u32, u32)) {
        self.addresses += 1;
        let ip = format!("127.0.0.{}", self.addresses + 1);
        let mut command = self.isolated(lab);
        command.arg(format!("--address={}", self.address())).arg(format!("--node-ip-address={ip}"));
        command.arg(format!("--num-cpus={cpus}")).arg(format!("--num-gpus={gpus}"));
        command.env("RAY_CLOUD_INSTANCE_ID", pod).env("RAY_NODE_TYPE_NAME", group);
        let worker = lab.spawn(&format!("ray-{pod}"), command);
        self.workers.insert(pod.to_owned(), worker);
    }

    /// Whether the pod's worker was started and has not ended.
    pub fn runs(&mut self, pod: &str) -> bool {
        self.workers.get_mut(pod).is_some_and(Program::is_running)
    }

    /// SIGKILL for the others.
    pub fn keep_workers(&mut self, stays: impl Fn(&str) -> bool) {
        self.workers.retain(|pod, _| stays(pod));
    }

    /// A program of the cluster, in Python. What it prints is the log of this name.
    pub fn run(&self, lab: &Lab, name: &str, program: &Path, args: &[&str]) -> Program {
        let mut command = lab.command(self.bin.join("python"));
        command.arg("-u").arg(program).args(args);
        self.set_environment(&mut command);
        command.env("RAY_ADDRESS", self.address());
        lab.spawn(name, command)
    }

    /// What `ray status` prints. Without the variable, which KubeRay sets at heads with the second version of Ray's
    /// autoscaler, it shows nothing of what was reported.
    pub async fn status(&self, lab: &Lab) -> String {
        let mut command = lab.command(self.bin.join("ray"));
        command.args(["status", "--address", &self.address()]);
        self.set_environment(&mut command);
        command.env("RAY_enable_autoscaler_v2", "1");
        let output = tokio::process::Command::from(command).output().await.expect("ray starts");
        assert!(output.status.success(), "ray status: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `ray start`, with processes that end with it.
    fn isolated(&self, lab: &Lab) -> Command {
        let mut command = lab.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(self.bin.join("ray"));
        command.args(["start", "--block", "--disable-usage-stats", "--object-store-memory=100000000"]);
        self.set_environment(&mut command);
        command
    }

    fn set_environment(&self, command: &mut Command) {
        command.env("RAY_USAGE_STATS_ENABLED", "0").env("RAY_DEDUP_LOGS", "0");
        if self.autoscaled.is_some() {
            command.env("RAY_enable_autoscaler_v2", "1");
        }
        if let Some(token) = &self.token {
            command.env("RAY_AUTH_MODE", "token").env("RAY_AUTH_TOKEN", token);
        }
        if let Some(Tls { ca, cert, key }) = &self.tls {
            command.env("RAY_USE_TLS", "1").env("RAY_TLS_CA_CERT", ca);
            command.env("RAY_TLS_SERVER_CERT", cert).env("RAY_TLS_SERVER_KEY", key);
        }
    }
}

impl Drop for Ray {
    fn drop(&mut self) {
        self.autoscaler = None;
        self.workers.clear();
        self.head = None;
        // It may not have come so far.
        let _nothing_there = std::fs::remove_dir_all(&self.temp);
    }
}
