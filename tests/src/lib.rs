//! What the end-to-end tests stand on: a lab of their own (see `cargo xtask lab`), our binaries run in it, and waiting.
//! Everything here panics rather than returning errors: in a test, a broken lab is a failed test.

pub mod audit;
mod aws;
mod browser;
pub mod contest;
mod drains;
mod ebb;
mod http;
mod kuberay;
mod metadata;
mod program;
mod proxy;
mod ray;
pub mod rights;
pub mod scheduling;
mod terminal;
pub mod trials;
mod wait;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

pub use aws::{AwsCall, Group, Instance};
pub use browser::{Browser, key};
pub use drains::{Drains, PLOT, check_requests, now};
pub use ebb::{BROKER_AUDIENCE, Ebb, Rights, node_of};
pub use http::http;
pub use kuberay::{FakeKuberay, WorkerGroup};
pub use metadata::MetadataMock;
pub use program::{Program, binary, free_port};
pub use proxy::{Fault, Proxy, Seen};
pub use ray::{Ray, Tls, own_network};
pub use rustix::process::Signal;
pub use terminal::Terminal;
pub use wait::wait_until;

/// What a lab is made with; see `cargo xtask lab up --help`.
#[derive(Default)]
pub struct LabOptions {
    /// As for `--group`: `name=cpu,min=0,max=4,type=m5.xlarge`.
    pub groups: Vec<String>,
    /// From the launch of an instance to its Node.
    pub boot_delay: Duration,
    /// More flags for kube-apiserver.
    pub apiserver_args: Vec<String>,
    /// More flags for kube-controller-manager.
    pub controller_manager_args: Vec<String>,
}

/// A control plane with KWOK nodes and a fake AWS, for one test. Stopped on drop; a test that failed keeps its logs.
#[derive(Deserialize)]
pub struct Lab {
    pub dir: PathBuf,
    /// The cluster's admin.
    pub kubeconfig: PathBuf,
    pub server: String,
    pub ca_file: PathBuf,
    /// kubectl and the servers.
    pub bin: PathBuf,
    pub aws_endpoint: String,
    pub aws_log: PathBuf,
    pub region: String,
    /// Logs of the programs that the test started, for [`Lab::diagnosis`].
    #[serde(skip)]
    logs: Mutex<Vec<PathBuf>>,
}

impl Lab {
    pub async fn up(options: LabOptions) -> Self {
        let mut up = Command::new(binary("xtask"));
        up.args(["lab", "up", "--output", "json", "--dir"]).arg(new_dir());
        up.arg("--boot-delay").arg(format!("{}ms", options.boot_delay.as_millis()));
        for group in &options.groups {
            up.arg("--group").arg(group);
        }
        for flag in &options.apiserver_args {
            up.arg(format!("--apiserver-arg={flag}"));
        }
        for flag in &options.controller_manager_args {
            up.arg(format!("--controller-manager-arg={flag}"));
        }
        let output = up.stderr(Stdio::inherit()).output().await.expect("xtask starts");
        assert!(output.status.success(), "the lab did not come up");
        serde_json::from_slice(&output.stdout).expect("xtask prints the lab as JSON")
    }

    /// The API as the cluster's admin.
    pub async fn client(&self) -> Client {
        client(&self.kubeconfig).await
    }

    /// The API as nobody: what a request says of its sender is all that the API server hears.
    pub async fn anonymous_client(&self) -> Client {
        let mut config = kube::Config::new(self.server.parse().expect("the lab's server has a URL"));
        let file = Kubeconfig::read_from(&self.kubeconfig).expect("the kubeconfig is there");
        let loader = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        config.root_cert = loader.expect("the kubeconfig is complete").root_cert;
        // A 429 is an answer, for whoever asks through this.
        config.default_retry = false;
        Client::try_from(config).expect("its certificates can be read")
    }

    /// Runs kubectl as the admin and returns what it printed.
    pub async fn kubectl(&self, words: &[&str]) -> String {
        self.try_kubectl(words).await.unwrap_or_else(|error| panic!("kubectl {}: {error}", words.join(" ")))
    }

    /// The same where a refusal is an answer: `Err` holds what kubectl complained about.
    pub async fn try_kubectl(&self, words: &[&str]) -> Result<String, String> {
        let output = self.kubectl_command().args(words).output().await.expect("kubectl starts");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Applies YAML (or JSON) given as text.
    pub async fn apply(&self, manifests: &str) {
        let mut kubectl = self.kubectl_command();
        kubectl.args(["apply", "--filename=-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(manifests.as_bytes()).await.expect("kubectl reads");
        drop(stdin);
        let output = child.wait_with_output().await.expect("kubectl ends");
        assert!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Applies a file, a folder or a URL.
    pub async fn apply_file(&self, path: impl AsRef<Path>) {
        self.kubectl(&["apply", "--filename", &path.as_ref().to_string_lossy()]).await;
    }

    /// A token of a ServiceAccount. Bound to a pod, it carries the pod's node name and node UID, as in a real cluster.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        audience: &str,
        bound_pod: Option<&Pod>,
    ) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await, namespace);
        let bound_object_ref = bound_pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(pod.name_any()),
            uid: pod.uid(),
        });
        let spec = TokenRequestSpec { audiences: Some(vec![audience.into()]), bound_object_ref, ..Default::default() };
        let request = TokenRequest { spec: Some(spec), ..Default::default() };
        let reply = accounts.create_token_request(name, &PostParams::default(), &request).await;
        let status = reply.expect("the API server issues a token").status;
        status.and_then(|status| status.token).expect("a token request is answered at once")
    }

    /// The audience of tokens that the API server itself takes.
    pub const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

    /// Writes a kubeconfig for the bearer of a token.
    pub fn write_kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        self.write_kubeconfig_for(name, token, &self.server)
    }

    /// The same for one who finds the API server elsewhere.
    pub fn write_kubeconfig_for(&self, name: &str, token: &str, server: &str) -> PathBuf {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": self.ca_file}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
        });
        let path = self.dir.join("conf").join(format!("{name}.kubeconfig"));
        std::fs::write(&path, config.to_string()).expect("the lab's folder takes a kubeconfig");
        path
    }

    /// A command with the lab's environment (KUBECONFIG of the admin, AWS_*); change what differs, then [`Lab::spawn`].
    pub fn command(&self, program: impl AsRef<Path>) -> std::process::Command {
        let mut command = std::process::Command::new(program.as_ref());
        command.env("KUBECONFIG", &self.kubeconfig).envs(self.aws_env());
        command
    }

    /// Starts one of our programs; its log is `NAME.log` in the lab's log folder, and a second start adds to it.
    pub fn spawn(&self, name: &str, command: std::process::Command) -> Program {
        let log = self.dir.join("log").join(format!("{name}.log"));
        let program = Program::start(name, command, log.clone());
        let mut logs = self.logs.lock().expect("nobody panics with this lock");
        if !logs.contains(&log) {
            logs.push(log);
        }
        program
    }

    /// What a program started with [`Lab::spawn`] has printed, also after it has ended.
    pub fn log(&self, name: &str) -> String {
        let log = std::fs::read(self.dir.join("log").join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// [`wait_until`] with the state of the whole lab in the panic.
    pub async fn wait_until(&self, what: &str, timeout: Duration, condition: impl AsyncFnMut() -> bool) {
        wait_until(what, timeout, condition, async || self.diagnosis().await).await;
    }

    /// Nodes, pods, latest events, groups, and the end of the log of each program that the test started.
    pub async fn diagnosis(&self) -> String {
        let mut text = String::new();
        for words in [
            &["get", "nodes,pods", "--all-namespaces", "--output=wide"][..],
            &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
        ] {
            let output = self.try_kubectl(words).await.unwrap_or_else(|error| error);
            text += &format!("--- kubectl {}\n{}", words.join(" "), wait::tail(&output, 30));
        }
        text += &format!("--- groups\n{:#?}\n", self.asg().await);
        for log in self.logs.lock().expect("nobody panics with this lock").iter() {
            let output = std::fs::read(log).unwrap_or_default();
            text += &format!("--- {}\n{}", log.display(), wait::tail(&String::from_utf8_lossy(&output), 30));
        }
        text
    }

    fn kubectl_command(&self) -> Command {
        let mut kubectl = Command::new(self.bin.join("kubectl"));
        kubectl.arg("--kubeconfig").arg(&self.kubeconfig).kill_on_drop(true);
        // What it knows of a server's APIs it keeps by the server's address, and that was another lab's before.
        kubectl.env("KUBECACHEDIR", self.dir.join("kubectl"));
        kubectl
    }

    fn aws_env(&self) -> BTreeMap<&'static str, &str> {
        BTreeMap::from([
            ("AWS_ACCESS_KEY_ID", "lab"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_ENDPOINT_URL", self.aws_endpoint.as_str()),
            ("AWS_REGION", self.region.as_str()),
            ("AWS_SECRET_ACCESS_KEY", "lab"),
        ])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut down = std::process::Command::new(binary("xtask"));
        down.args(["lab", "down", "--dir"]).arg(&self.dir);
        if std::thread::panicking() {
            eprintln!("the lab's logs are kept in {}", self.dir.join("log").display());
            down.arg("--keep-logs");
        }
        match down.status() {
            Ok(status) if status.success() => {}
            // No panic: this drop may be part of one.
            failed => eprintln!("the lab in {} was not stopped: {failed:?}", self.dir.display()),
        }
    }
}

/// The API as the user of a kubeconfig.
pub async fn client(kubeconfig: &Path) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig is there");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("the kubeconfig is complete")).expect("its certificates can be read")
}

/// The same, to whom a 429 is an answer.
pub async fn client_that_asks_once(kubeconfig: &Path) -> Client {
    once(Kubeconfig::read_from(kubeconfig).expect("the kubeconfig is there")).await
}

async fn once(kubeconfig: Kubeconfig) -> Client {
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.expect("the kubeconfig is complete");
    config.default_retry = false;
    Client::try_from(config).expect("its certificates can be read")
}

/// A folder that no other lab has, named after the test.
fn new_dir() -> PathBuf {
    static LABS: AtomicU32 = AtomicU32::new(0);
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test").replace("::", "-");
    let lab = LABS.fetch_add(1, Ordering::Relaxed);
    program::root().join("target/labs").join(format!("{test}-{}-{lab}", std::process::id()))
}
