//! What EC2, the kubelet and the cloud-controller-manager do together: an instance becomes a Node, run by KWOK, after the
//! boot delay, and the Node of an instance that is gone is deleted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::config::{Config, GroupConfig};
use crate::faults::{Attempt, Rule};
use crate::instance_types;
use crate::server::Lab;
use crate::service::InstanceView;

/// After a pass that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Makes the Nodes follow the instances, for ever. A pass may fail at any point; the next one finishes its work.
pub(crate) async fn follow(lab: Arc<Lab>, config: Config) {
    let Some(kubeconfig) = config.kubeconfig.clone() else { return };
    let mut changes = lab.changes();
    let mut nodes = None;
    loop {
        changes.mark_unchanged();
        let next = match pass(&lab, &config, &kubeconfig, &mut nodes).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "a pass over the nodes failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let booted = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = booted => {}
            // The sender is the lab's own, so that this is a change.
            _ = changes.changed() => {}
        }
    }
}

/// One pass; when the next instance will have booted.
async fn pass(
    lab: &Lab,
    config: &Config,
    kubeconfig: &Path,
    nodes: &mut Option<Nodes>,
) -> anyhow::Result<Option<Instant>> {
    if nodes.is_none() {
        *nodes = Some(Nodes::connect(kubeconfig, Duration::from_millis(config.boot_delay_ms)).await?);
    }
    let nodes = nodes.as_mut().expect("it was made above");
    let mut alive = BTreeMap::new();
    {
        let mut service = lab.service();
        for group in service.groups() {
            let made_from = config.groups.iter().find(|known| known.name == group.name);
            for instance in group.instances {
                nodes.boots.entry(instance.id.clone()).or_insert_with(|| {
                    let InstanceView { zone, instance_type, market, .. } = &instance;
                    let attempt = Attempt { group: &group.name, zone, instance_type, market: *market };
                    Boot::begin(nodes.boot_delay, service.faults.boot(Timestamp::now(), attempt).as_ref())
                });
                alive.insert(instance.id.clone(), (instance, made_from));
            }
        }
    }
    nodes.follow(&config.region, &alive).await
}

/// How an instance that was launched comes up.
#[derive(Clone, Copy)]
enum Boot {
    Done { at: Instant },
    Never,
}

impl Boot {
    fn begin(delay: Duration, fault: Option<&Rule>) -> Self {
        match fault.map(|fault| fault.delay_ms) {
            Some(None) => Self::Never,
            more => Self::Done { at: Instant::now() + delay + Duration::from_millis(more.flatten().unwrap_or(0)) },
        }
    }
}

struct Nodes {
    api: Api<Node>,
    boot_delay: Duration,
    boots: BTreeMap<String, Boot>,
    /// The name of each instance's Node.
    known: BTreeMap<String, String>,
}

impl Nodes {
    async fn connect(kubeconfig: &Path, boot_delay: Duration) -> anyhow::Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig).context("read the kubeconfig")?;
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let api: Api<Node> = Api::all(Client::try_from(config)?);
        let nodes = api.list(&ListParams::default()).await.context("list the nodes")?.items;
        let instance = |node: &Node| {
            let id = node.spec.as_ref()?.provider_id.as_deref()?.strip_prefix("aws:///")?.rsplit('/').next()?;
            Some((id.to_owned(), node.name_any()))
        };
        let known = nodes.iter().filter_map(instance).collect();
        Ok(Self { api, boot_delay, boots: BTreeMap::new(), known })
    }

    async fn follow(
        &mut self,
        region: &str,
        alive: &BTreeMap<String, (InstanceView, Option<&GroupConfig>)>,
    ) -> anyhow::Result<Option<Instant>> {
        self.boots.retain(|id, _| alive.contains_key(id));
        // First, because a new instance may have got the address, and so the name, of one that is gone.
        while let Some((id, name)) = self.known.iter().find(|(id, _)| !alive.contains_key(*id)) {
            let (id, name) = (id.clone(), name.clone());
            match self.api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                deleted => drop(deleted.with_context(|| format!("delete node {name}"))?),
            }
            self.known.remove(&id);
            tracing::info!(node = name, instance = id, "node deleted");
        }
        let now = Instant::now();
        let mut next = None::<Instant>;
        for (id, (instance, group)) in alive {
            let Boot::Done { at: booted } = self.boots[id] else { continue };
            if self.known.contains_key(id) {
                continue;
            }
            if now < booted {
                next = Some(next.map_or(booted, |earlier| earlier.min(booted)));
                continue;
            }
            let node = serde_json::from_value(node(region, instance, *group)).context("make a node")?;
            match self.api.create(&PostParams::default(), &node).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                created => drop(created.with_context(|| format!("create node {}", instance.node))?),
            }
            self.known.insert(id.clone(), instance.node.clone());
            tracing::info!(node = instance.node, instance = id, "node created");
        }
        Ok(next)
    }
}

/// A Node as the kubelet of an EKS node would register it; a group that a test made itself adds nothing.
fn node(region: &str, instance: &InstanceView, group: Option<&GroupConfig>) -> Value {
    let InstanceView { id, instance_type, zone, ip, node: name, .. } = instance;
    let size = instance_types::find(instance_type);
    let architecture = size.map_or("amd64", |size| size.architecture);
    let mut labels = json!({
        "beta.kubernetes.io/arch": architecture,
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": instance_type,
        "topology.kubernetes.io/region": region,
        "topology.kubernetes.io/zone": zone,
    });
    for (key, value) in group.iter().flat_map(|group| &group.labels) {
        labels[key] = value.as_str().into();
    }
    let taint = |taint: &crate::config::Taint| json!({"key": taint.key, "value": taint.value, "effect": taint.effect});
    let taints: Vec<Value> = group.iter().flat_map(|group| &group.taints).map(taint).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": labels},
        "spec": {"providerID": format!("aws:///{zone}/{id}"), "taints": taints},
        "status": {
            "capacity": size.map(instance_types::InstanceType::capacity),
            "allocatable": size.map(instance_types::InstanceType::allocatable),
            "addresses": [
                {"type": "InternalIP", "address": ip},
                {"type": "InternalDNS", "address": name},
                {"type": "Hostname", "address": name},
            ],
        },
    })
}
