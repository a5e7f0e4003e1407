//! The simulator's HPA against the real controller: the same load, and the replicas at which each comes to rest.
//!
//! The metrics are this test's: a server of `metrics.k8s.io` behind the real aggregation layer, named as a fake here. It
//! tells of each pod what the stage says.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use ebb_core::time::Instant;
use ebb_sim::hpa::{Behavior, Hpa, Observed, Pod, Policy, Spec, Usage};
use ebb_tests::{Lab, LabOptions};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const SOON: Duration = Duration::from_secs(90);
/// The controller's rounds, by a flag of the lab.
const SYNC: Duration = Duration::from_secs(1);
const HELD_DOWN: Duration = Duration::from_secs(10);
const MAX: u32 = 20;
/// Both metrics are asked for in each round; twice the window without a change is rest.
const REST: u64 = 2 * 2 * HELD_DOWN.as_secs();

/// What the pods use, in percent of their requests.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// So much in all, spread evenly.
    Spread { cpu: u64, memory: u64 },
    /// So much each of the first pods that there are; nothing is known of all others.
    First { pods: usize, each: u64 },
}

/// One after the other, each from where the one before came to rest.
const STAGES: [(Load, &str); 8] = [
    (Load::Spread { cpu: 300, memory: 0 }, "CPU above the target"),
    (Load::Spread { cpu: 620, memory: 0 }, "more of it"),
    (Load::First { pods: 6, each: 150 }, "above the target, with pods that say nothing"),
    (Load::Spread { cpu: 130, memory: 0 }, "below the target"),
    (Load::Spread { cpu: 20, memory: 480 }, "memory above its target"),
    (Load::First { pods: 2, each: 5 }, "below the target, with pods that say nothing"),
    (Load::First { pods: 0, each: 0 }, "no pod says anything"),
    (Load::Spread { cpu: 10, memory: 10 }, "next to nothing"),
];

#[tokio::test]
async fn the_model_comes_to_rest_where_the_real_controller_does() {
    let sync = format!("--horizontal-pod-autoscaler-sync-period={}s", SYNC.as_secs());
    let groups = vec!["name=cpu,type=m5.12xlarge,desired=1,max=1".to_owned()];
    let options = LabOptions { groups, controller_manager_args: vec![sync], ..LabOptions::default() };
    let lab = Lab::up(options).await;
    let client = lab.client().await;
    let pods: Api<api::Pod> = Api::namespaced(client.clone(), "default");
    let metrics = Metrics::serve(&lab, pods).await;
    lab.apply(&manifests(metrics.port)).await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let hpas: Api<HorizontalPodAutoscaler> = Api::namespaced(client, "default");
    let replicas = async || {
        let deployment = deployments.get("work").await.unwrap();
        u32::try_from(deployment.spec.unwrap().replicas.unwrap()).unwrap()
    };
    let mut modelled = 1;
    for (load, what) in STAGES {
        metrics.set(load).await;
        let (rest, cpu_percent) = at_rest(load, modelled);
        let start = metrics.asked();
        lab.wait_until(&format!("{rest} replicas, as in the model: {what}"), SOON, async || replicas().await == rest)
            .await;
        let arrived = metrics.asked();
        let asked = async || metrics.asked() >= arrived + REST;
        lab.wait_until("the controller to look again and again", SOON, asked).await;
        assert_eq!(replicas().await, rest, "{what}: it goes on from where the model rests");
        let status = hpas.get("work").await.unwrap().status.unwrap();
        let current = status.current_metrics.unwrap_or_default();
        let cpu = current.iter().filter_map(|it| it.resource.as_ref()).find(|resource| resource.name == "cpu");
        let shown = cpu.and_then(|cpu| cpu.current.average_utilization).and_then(|percent| u32::try_from(percent).ok());
        if let Some(percent) = cpu_percent {
            assert_eq!(shown, Some(percent), "{what}: the CPU that the controller shows");
        }
        println!("{what}: from {modelled} to {rest} replicas, after {} looks at the metrics", arrived - start);
        modelled = rest;
    }
    println!("compared {} stages with the real controller", STAGES.len());
}

/// Where the model comes to rest, and the CPU that it shows there.
fn at_rest(load: Load, mut replicas: u32) -> (u32, Option<u32>) {
    let behavior =
        |seconds| Behavior { stabilization: seconds, policies: vec![Policy::Percent(1000, Duration::from_secs(15))] };
    let spec = Spec { up: behavior(Duration::ZERO), down: behavior(HELD_DOWN), ..Spec::flow(1, MAX) };
    let mut hpa = Hpa::new(spec);
    let mut now = Instant::from_millis(1_000_000_000_000);
    let mut outcome = None;
    for _ in 0..100 {
        let long_ago = Some(now.before(Duration::from_secs(3600)));
        let pods = (0..replicas as usize).map(|index| Pod {
            running: true,
            started: long_ago,
            ready_since: long_ago,
            terminating: false,
            cpu_request: REQUEST,
            memory_request: REQUEST,
            usage: load.on(index, replicas as usize).map(|(cpu, memory)| Usage {
                cpu,
                memory,
                at: now,
                window: Duration::ZERO,
            }),
        });
        let seen = hpa.sync(now, &Observed { replicas, pods: pods.collect(), demand: None });
        replicas = seen.desired;
        outcome = Some(seen);
        now = now + SYNC;
    }
    (replicas, outcome.and_then(|outcome| outcome.cpu_percent))
}

/// Of a pod: thousandths of a CPU, and bytes.
const REQUEST: u64 = 1000;

impl Load {
    /// What the pod of this index uses, in the requests' unit.
    fn on(self, index: usize, pods: usize) -> Option<(u64, u64)> {
        match self {
            Self::Spread { cpu, memory } => {
                let share = |percent: u64| percent * REQUEST / 100 / pods as u64;
                Some((share(cpu), share(memory)))
            }
            Self::First { pods: known, each } => {
                (index < known).then_some((each * REQUEST / 100, each * REQUEST / 100))
            }
        }
    }
}

/// A fake of metrics-server: speaks its API, makes up its numbers.
struct Metrics {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    pods: Api<api::Pod>,
    asked: AtomicU64,
    load: Mutex<Load>,
    /// Names in the order in which they were first seen, so that the first pods stay the first.
    order: Mutex<Vec<String>>,
}

impl Metrics {
    async fn serve(lab: &Lab, pods: Api<api::Pod>) -> Self {
        let shared = Arc::new(Shared {
            pods,
            asked: AtomicU64::new(0),
            load: Mutex::new(Load::First { pods: 0, each: 0 }),
            order: Mutex::default(),
        });
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        let pki = |name| lab.dir.join("pki").join(name);
        let certificates = CertificateDer::pem_file_iter(pki("server.crt")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(pki("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(certificates, key).unwrap();
        let router = Router::new()
            .route("/apis/metrics.k8s.io/v1beta1", get(async || Json(resources())))
            .route("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods", get(list))
            .with_state(shared.clone());
        tokio::spawn(
            async move { axum::serve(Tls { tcp, acceptor: TlsAcceptor::from(Arc::new(config)) }, router).await },
        );
        Self { port, shared }
    }

    fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    async fn set(&self, load: Load) {
        self.shared.standing().await;
        *self.shared.load.lock().unwrap() = load;
    }
}

impl Shared {
    /// Names of the pods that are not leaving, the longest known first.
    async fn standing(&self) -> Vec<String> {
        let pods = self.pods.list(&ListParams::default()).await.unwrap().items;
        let standing = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let mut standing: BTreeSet<String> = standing.map(ResourceExt::name_any).collect();
        let mut order = self.order.lock().unwrap();
        order.retain(|name| standing.remove(name));
        order.extend(standing);
        order.clone()
    }
}

async fn list(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let names = shared.standing().await;
    let load = *shared.load.lock().unwrap();
    shared.asked.fetch_add(1, Ordering::Relaxed);
    let item = |(index, name): (usize, &String)| {
        let (cpu, memory) = load.on(index, names.len())?;
        Some(json!({
            "metadata": {"name": name, "namespace": "default"},
            "timestamp": Timestamp::now().to_string(),
            "window": "0s",
            "containers": [{"name": "work", "usage": {"cpu": format!("{cpu}m"), "memory": memory.to_string()}}],
        }))
    };
    let items: Vec<Value> = names.iter().enumerate().filter_map(item).collect();
    Json(json!({"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items}))
}

fn resources() -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1", "resources": [
        {"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]},
    ]})
}

struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            // A probe that hangs up is none of ours.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

fn manifests(port: u16) -> String {
    let held = HELD_DOWN.as_secs();
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: metrics, namespace: default}}
spec: {{type: ExternalName, externalName: localhost}}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: v1beta1.metrics.k8s.io}}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {{namespace: default, name: metrics, port: {port}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: work, namespace: default}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: work}}}}
  template:
    metadata: {{labels: {{app: work}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: work, image: work, resources: {{requests: {{cpu: {REQUEST}m, memory: "{REQUEST}"}}}}}}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: work, namespace: default}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: work}}
  minReplicas: 1
  maxReplicas: {MAX}
  metrics:
    - {{type: Resource, resource: {{name: cpu, target: {{type: Utilization, averageUtilization: 70}}}}}}
    - {{type: Resource, resource: {{name: memory, target: {{type: Utilization, averageUtilization: 80}}}}}}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 0
      policies: [{{type: Percent, value: 1000, periodSeconds: 15}}]
    scaleDown:
      stabilizationWindowSeconds: {held}
      policies: [{{type: Percent, value: 100, periodSeconds: 15}}]
"#
    )
}
