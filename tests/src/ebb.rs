//! Ebb installed in a lab: its manifests applied, its coordinator and agents running as processes beside the control
//! plane. What a kubelet does for real pods is done here: for each pod of the agents' DaemonSet on a KWOK node an
//! `ebb-agent` process runs, with tokens bound to that pod and files where its volumes would be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::ListParams;
use kube::config::Kubeconfig;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::program::{binary, free_port, root};
use crate::{Lab, Program, http};

const NAMESPACE: &str = "ebb";
/// The audience of the tokens that agents show to the coordinator, as in the manifests.
const REPORTS_AUDIENCE: &str = "ebb-coordinator";
/// Of those by which it writes for them.
pub const BROKER_AUDIENCE: &str = "ebb-broker";
/// The coordinator's name in its certificate.
const COORDINATOR_NAME: &str = "ebb-coordinator.ebb.svc";

/// What holds agents to their own node: the chart's value `agent.rights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    Admission,
    Brokered,
    Impersonation,
}

impl Rights {
    fn flag(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Brokered => "brokered",
            Self::Impersonation => "impersonation",
        }
    }
}

/// Ebb, installed from `deploy/manifests`.
pub struct Ebb {
    // Before `lab`: stopped first.
    coordinator: Option<Program>,
    /// By the UID of their pod.
    agents: BTreeMap<String, Program>,
    rights: Rights,
    /// Where the API server asks about evictions, with [`Rights::Admission`].
    admission_port: u16,
    /// Where agents ask to be written for, with [`Rights::Brokered`].
    broker_port: u16,
    pub client: Client,
    pub reports_port: u16,
    pub http_port: u16,
    /// How often agents sample.
    pub agent_interval: &'static str,
    /// For agents that are to read a host, in place of a recording of a node that does nothing.
    pub agent_flags: Vec<String>,
    pub lab: Lab,
}

impl Ebb {
    /// Applies the manifests. Starts neither coordinator nor agents.
    pub async fn install(lab: Lab) -> Self {
        Self::install_with(lab, Rights::Impersonation).await
    }

    /// The same with the manifests for these rights.
    pub async fn install_with(lab: Lab, rights: Rights) -> Self {
        let manifests = match rights {
            Rights::Admission => "ebb-admission.yaml",
            Rights::Brokered => "ebb-brokered.yaml",
            Rights::Impersonation => "ebb.yaml",
        };
        lab.apply_file(root().join("deploy/manifests").join(manifests)).await;
        Self::installed(lab, rights).await
    }

    /// In a lab that has its manifests already.
    pub async fn installed(lab: Lab, rights: Rights) -> Self {
        let client = lab.client().await;
        Self {
            rights,
            admission_port: free_port(),
            broker_port: free_port(),
            coordinator: None,
            agents: BTreeMap::new(),
            client,
            reports_port: free_port(),
            http_port: free_port(),
            agent_interval: "200ms",
            agent_flags: Vec::new(),
            lab,
        }
    }

    /// The configuration from the manifests.
    pub async fn config(&self) -> String {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let map = maps.get("ebb-coordinator").await.expect("the manifests hold the configuration");
        map.data.unwrap_or_default().remove("config.yaml").expect("under this key")
    }

    /// Starts the coordinator as its ServiceAccount, with this configuration and further flags.
    pub async fn start_coordinator(&mut self, config: &str, flags: &[&str]) {
        let file = self.lab.dir.join("conf/coordinator.yaml");
        std::fs::write(&file, config).expect("the lab's folder takes a file");
        let token = self.lab.service_account_token(NAMESPACE, "ebb-coordinator", Lab::API_AUDIENCE, None).await;
        let mut command = self.lab.command(binary("ebb-coordinator"));
        command
            .arg("--config")
            .arg(file)
            .arg("--kubeconfig")
            .arg(self.lab.write_kubeconfig("coordinator", &token))
            .args(["--namespace", NAMESPACE, "--identity", "test"])
            .args(["--listen", &format!("127.0.0.1:{}", self.http_port)])
            .args(["--listen-reports", &format!("127.0.0.1:{}", self.reports_port)])
            .args(flags);
        if self.rights == Rights::Admission {
            // No Service leads anywhere in a lab, so the webhook is asked by its address.
            let url = format!("https://127.0.0.1:{}/evictions", self.admission_port);
            command.args(["--listen-admission", &format!("127.0.0.1:{}", self.admission_port)]);
            command.args(["--tls-san", "127.0.0.1"]);
            let config =
                format!(r#"[{{"op": "add", "path": "/webhooks/0/clientConfig", "value": {{"url": "{url}"}}}}]"#);
            let words = ["patch", "validatingwebhookconfiguration", "ebb-agent", "--type=json", "--patch", &config];
            self.lab.kubectl(&words).await;
        }
        if self.rights == Rights::Brokered {
            command.args(["--listen-broker", &format!("127.0.0.1:{}", self.broker_port)]);
        }
        self.coordinator = Some(self.lab.spawn("coordinator", command));
    }

    /// The one that runs.
    pub fn coordinator(&self) -> &Program {
        self.coordinator.as_ref().expect("it was started")
    }

    /// SIGKILL.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.take().expect("it was started").kill();
    }

    /// SIGTERM; whether it ended well.
    pub async fn stop_coordinator(&mut self) -> bool {
        let coordinator = self.coordinator.take().expect("it was started");
        coordinator.terminate(Duration::from_secs(15)).await.success()
    }

    /// Waits for a condition while agents come and go with their pods.
    pub async fn wait_until(&mut self, what: &str, within: Duration, mut condition: impl AsyncFnMut(&Self) -> bool) {
        let deadline = Instant::now() + within;
        loop {
            self.sync_agents().await;
            if condition(self).await {
                return;
            }
            if Instant::now() >= deadline {
                panic!("waited {within:?} for {what}\n{}", self.lab.diagnosis().await);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether the coordinator's HTTP port is open yet.
    pub async fn listens(&self) -> bool {
        tokio::net::TcpStream::connect(("127.0.0.1", self.http_port)).await.is_ok()
    }

    /// The coordinator's metrics, as text.
    pub async fn metrics(&self) -> String {
        let (_, metrics) = http(&format!("127.0.0.1:{}", self.http_port), "GET", "/metrics", &[], "").await;
        metrics
    }

    /// What the program `ebb` prints; panics if it fails.
    pub fn ebb(&self, words: &[&str]) -> String {
        let output = self.lab.command(binary("ebb")).args(words).output().expect("ebb starts");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "ebb {words:?}: {printed}{}", String::from_utf8_lossy(&output.stderr));
        printed
    }

    /// The same, asking this coordinator.
    pub fn ask(&self, words: &[&str]) -> String {
        self.ebb(&[words, &["--coordinator", &format!("http://127.0.0.1:{}", self.http_port)]].concat())
    }

    /// The coordinator's log lines about decisions.
    pub fn decisions(&self) -> Vec<String> {
        let log = self.lab.log("coordinator");
        let lines = log.lines().filter_map(|line| {
            let (when, what) = line.split_once("decided ").filter(|(head, _)| head.contains("INFO"))?;
            Some(format!("{}  {what}", when.get(11..23)?))
        });
        lines.collect()
    }

    pub async fn nodes(&self) -> Vec<Node> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.list(&ListParams::default()).await.expect("the admin may list nodes").items
    }

    pub async fn pod(&self, name: &str) -> Option<Pod> {
        let pods: Api<Pod> = Api::default_namespaced(self.client.clone());
        pods.get_opt(name).await.expect("the admin may read pods")
    }

    /// The agents' pods that are bound to a node.
    pub async fn agent_pods(&self) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let selector = ListParams::default().labels("app.kubernetes.io/component=agent");
        let pods = pods.list(&selector).await.expect("the admin may list pods").items;
        let bound = |pod: &Pod| node_of(pod).is_some() && pod.metadata.deletion_timestamp.is_none();
        pods.into_iter().filter(bound).collect()
    }

    /// How many agents run.
    pub fn agents(&self) -> usize {
        self.agents.len()
    }

    /// A token as the agent's pod has it for the coordinator.
    pub async fn reports_token(&self, pod: &Pod) -> String {
        self.lab.service_account_token(NAMESPACE, "ebb-agent", REPORTS_AUDIENCE, Some(pod)).await
    }

    /// The certificate authority that the coordinator has published, once it has.
    pub async fn ca(&self) -> Option<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let map = maps.get_opt("ebb-coordinator-ca").await.expect("the admin may read config maps")?;
        map.data?.remove("ca.crt")
    }

    /// The coordinator, where it writes for the bearer of this token; its certificate is awaited.
    pub async fn broker(&self, token: &str) -> Client {
        let (soon, port) = (Duration::from_secs(60), self.broker_port);
        self.lab
            .wait_until("the coordinator to write for agents", soon, async || {
                let Some(ca) = self.ca().await else { return false };
                std::fs::write(self.ca_file(), ca).expect("the lab's folder takes a file");
                tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
            })
            .await;
        let cluster = json!({"server": format!("https://127.0.0.1:{port}"), "certificate-authority": self.ca_file(),
            "tls-server-name": COORDINATOR_NAME});
        let kubeconfig = json!({"current-context": "broker", "clusters": [{"name": "broker", "cluster": cluster}],
            "users": [{"name": "agent", "user": {"token": token}}],
            "contexts": [{"name": "broker", "context": {"cluster": "broker", "user": "agent"}}]});
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).expect("it is a kubeconfig");
        crate::once(kubeconfig).await
    }

    fn ca_file(&self) -> PathBuf {
        self.lab.dir.join("conf/coordinator-ca.crt")
    }

    /// The kubelets' part.
    async fn sync_agents(&mut self) {
        // An agent must not find it half written.
        if let Some(ca) = self.ca().await
            && std::fs::read_to_string(self.ca_file()).ok().as_ref() != Some(&ca)
        {
            std::fs::write(self.ca_file(), ca).expect("the lab's folder takes a file");
        }
        let pods = self.agent_pods().await;
        self.agents.retain(|uid, _| pods.iter().any(|pod| pod.uid().as_ref() == Some(uid)));
        for pod in pods {
            let uid = pod.uid().expect("every object has one");
            if !self.agents.contains_key(&uid)
                && let Some(agent) = self.start_agent(&pod).await
            {
                self.agents.insert(uid, agent);
            }
        }
    }

    /// `None`: the pod or its node has gone in the meantime.
    async fn start_agent(&self, pod: &Pod) -> Option<Program> {
        let node = node_of(pod)?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let object = nodes.get_opt(&node).await.expect("the admin may read nodes")?;
        let has_gpu = object.status?.allocatable?.contains_key("nvidia.com/gpu");
        let folder = self.lab.dir.join("agents").join(&node);
        std::fs::create_dir_all(&folder).expect("the lab's folder takes a folder");
        let gpu = if has_gpu { r#"{"busy": 0}"# } else { r#""absent""# };
        let recording = format!(r#"{{"utilization": {{"cpu": 20, "gpu": {gpu}}}}}"#);
        std::fs::write(folder.join("readings"), recording).expect("the folder takes a file");
        std::fs::write(folder.join("token"), self.reports_token(pod).await).expect("the folder takes a file");
        let token = self.lab.service_account_token(NAMESPACE, "ebb-agent", Lab::API_AUDIENCE, Some(pod)).await;

        let mut command = self.lab.command(binary("ebb-agent"));
        command
            .args(["--node-name", &node, "--listen", &format!("127.0.0.1:{}", free_port())])
            .arg("--kubeconfig")
            .arg(self.lab.write_kubeconfig(&format!("agent-{node}"), &token))
            .args(["--coordinator", &format!("https://127.0.0.1:{}", self.reports_port)])
            .args(["--coordinator-server-name", COORDINATOR_NAME, "--coordinator-ca"])
            .arg(self.ca_file())
            .arg("--coordinator-token-file")
            .arg(folder.join("token"))
            .args(["--rights", self.rights.flag(), "--interval", self.agent_interval])
            .args(&self.agent_flags);
        if self.agent_flags.is_empty() {
            command.arg("--source").arg(format!("replay:{}", folder.join("readings").display()));
        }
        if self.rights == Rights::Brokered {
            let token = self.lab.service_account_token(NAMESPACE, "ebb-agent", BROKER_AUDIENCE, Some(pod)).await;
            std::fs::write(folder.join("broker-token"), token).expect("the folder takes a file");
            command.args(["--broker", &format!("https://127.0.0.1:{}", self.broker_port), "--broker-token-file"]);
            command.arg(folder.join("broker-token"));
        }
        Some(self.lab.spawn(&format!("agent-{node}"), command))
    }
}

/// The node that the pod is bound to.
pub fn node_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}
