//! The section `ray`: clusters whose head is asked for what waits in them, and what their workers are like.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebb_core::kubernetes::{Pod, TaintEffect, Toleration};
use ebb_core::ray::{Amounts, CLUSTER_LABEL, ClientCertificate, Cluster, Drive, GROUP_LABEL, WorkerGroup};
use ebb_core::resources::Resources;
use ebb_core::units::parse_quantity_milli;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::Text;
use crate::check::{Check, count};

/// The flow's, and Ray's own.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

const GCS_PORT: u16 = 6379;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Ray {
    #[serde(default)]
    clusters: Vec<ClusterEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterEntry {
    name: Text,
    namespace: Text,
    address: Option<Text>,
    token_file: Option<Text>,
    ca_file: Option<Text>,
    cert_file: Option<Text>,
    key_file: Option<Text>,
    worker_groups: Option<Spanned<Vec<GroupEntry>>>,
    drive: Option<DriveEntry>,
    report_launches: Option<bool>,
    #[serde(default)]
    pod_deletion_cost: bool,
}

/// There, and be it empty: Ebb sets the replicas.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DriveEntry {
    queue_depth: Option<Text>,
    idle_timeout: Option<Text>,
    upscaling_speed: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupEntry {
    name: Text,
    min_replicas: Option<Text>,
    max_replicas: Text,
    requests: Spanned<BTreeMap<String, Text>>,
    resources: Option<BTreeMap<String, Text>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
    #[serde(default)]
    tolerations: Vec<TolerationEntry>,
    priority: Option<Text>,
}

/// As in a pod.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TolerationEntry {
    key: Option<String>,
    operator: Option<Text>,
    value: Option<String>,
    effect: Option<Text>,
}

impl Ray {
    /// By namespace and name.
    pub(crate) fn clusters(&self, check: &mut Check) -> BTreeMap<String, Cluster> {
        let mut clusters = BTreeMap::new();
        for entry in &self.clusters {
            for (text, what) in [(&entry.name, "the cluster's name"), (&entry.namespace, "the cluster's namespace")] {
                if text.value.is_empty() {
                    check.refuse(text.referenced, format_args!("expected {what}"));
                }
            }
            let name = format!("{}/{}", entry.namespace.value, entry.name.value);
            if clusters.insert(name.clone(), entry.cluster(check)).is_some() {
                check.refuse(entry.name.referenced, format_args!("a second Ray cluster {name}"));
            }
        }
        clusters
    }
}

impl ClusterEntry {
    fn cluster(&self, check: &mut Check) -> Cluster {
        if let Some(address) = self.address.as_ref().filter(|address| !is_address(&address.value)) {
            let message =
                format_args!("`{}` is no HOST:PORT of a Ray head, as in train-head-svc.ml.svc:6379", address.value);
            check.refuse(address.referenced, message);
        }
        let groups = self.worker_groups.as_ref().map_or(&[][..], |groups| &groups.value);
        let mut names = BTreeSet::new();
        for group in groups {
            if group.name.value.is_empty() || !names.insert(group.name.value.as_str()) {
                check.refuse(group.name.referenced, "expected a name that no other worker group of the cluster has");
            }
        }
        if let Some(given) = self.worker_groups.as_ref().filter(|given| given.value.is_empty()) {
            check.refuse(given.referenced, "expected a worker group; without this key they are the RayCluster's");
        }
        Cluster {
            address: self.address.as_ref().map_or_else(|| self.head_service(), |address| address.value.clone()),
            token_file: path(self.token_file.as_ref(), check),
            ca_file: path(self.ca_file.as_ref(), check),
            client: self.client(check),
            worker_groups: groups.iter().map(|group| group.worker_group(self, check)).collect(),
            learns_groups: self.worker_groups.is_none(),
            drive: self.drive.as_ref().map(|drive| drive.drive(check)),
            // Nobody else does where Ebb sets the replicas.
            report_launches: self.report_launches.unwrap_or(self.drive.is_some()),
            pod_deletion_cost: self.pod_deletion_cost,
        }
    }
}

impl DriveEntry {
    fn drive(&self, check: &mut Check) -> Drive {
        let speed = |text: &str| {
            let speed = parse_quantity_milli(text).ok().and_then(|milli| u32::try_from(milli).ok());
            speed.filter(|speed| *speed > 0).ok_or_else(|| format!("`{text}` is no number above 0 as in 1 or 0.5"))
        };
        Drive {
            queue_depth: check.read(self.queue_depth.as_ref(), 0, count),
            idle_timeout: check.duration(self.idle_timeout.as_ref(), IDLE_TIMEOUT),
            upscaling_speed: self.upscaling_speed.as_ref().map(|text| check.read(Some(text), 1000, speed)),
        }
    }
}

impl ClusterEntry {
    /// KubeRay's.
    fn head_service(&self) -> String {
        format!("{}-head-svc.{}.svc:{GCS_PORT}", self.name.value, self.namespace.value)
    }

    fn client(&self, check: &mut Check) -> Option<ClientCertificate> {
        let (cert, key) = (path(self.cert_file.as_ref(), check), path(self.key_file.as_ref(), check));
        let given = self.cert_file.as_ref().or(self.key_file.as_ref())?;
        if self.ca_file.is_none() {
            check.refuse(given.referenced, "needs a caFile: without, the head is spoken to in the clear");
        }
        match (cert, key) {
            (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
            _ => {
                check.refuse(given.referenced, "expected both certFile and keyFile, or neither");
                None
            }
        }
    }
}

impl GroupEntry {
    fn worker_group(&self, cluster: &ClusterEntry, check: &mut Check) -> WorkerGroup {
        let min = check.read(self.min_replicas.as_ref(), 0, count);
        let max = check.read(Some(&self.max_replicas), u32::MAX, count);
        if let Some(above) = self.min_replicas.as_ref().filter(|_| min > max) {
            check.refuse(above.referenced, format_args!("minReplicas {min} is above maxReplicas {max}"));
        }
        let mut requests = check.resources(&self.requests.value);
        if requests == Resources::default() {
            check
                .refuse(self.requests.referenced, "expected what a worker's pod requests, or any node has room for it");
        }
        // Every pod asks for one of these.
        requests.set("pods", 1);
        let resources = match &self.resources {
            Some(texts) => amounts(texts, check),
            None => Amounts::of_requests(&requests),
        };
        let labels = if self.labels.is_empty() {
            let labels = [(CLUSTER_LABEL, &cluster.name.value), (GROUP_LABEL, &self.name.value)];
            labels.map(|(key, value)| (key.to_owned(), value.clone())).into()
        } else {
            self.labels.clone()
        };
        let pod = Pod {
            namespace: cluster.namespace.value.clone(),
            labels: labels.clone(),
            priority: check.read(self.priority.as_ref(), 0, |text| {
                text.parse::<i32>().map_err(|_| format!("`{text}` is no whole number"))
            }),
            requests,
            tolerations: self.tolerations.iter().filter_map(|entry| entry.toleration(check)).collect(),
            node_selector: self.node_selector.clone(),
            ..Pod::default()
        };
        WorkerGroup { name: self.name.value.clone(), pod, labels, resources, min, max }
    }
}

impl TolerationEntry {
    fn toleration(&self, check: &mut Check) -> Option<Toleration> {
        let value = match self.operator.as_ref().map_or("Equal", |operator| operator.value.as_str()) {
            "Exists" => None,
            "Equal" => Some(self.value.clone().unwrap_or_default()),
            other => {
                let at = self.operator.as_ref()?.referenced;
                check.refuse(at, format_args!("`{other}` is no operator of a toleration: Equal or Exists"));
                return None;
            }
        };
        let effect = match &self.effect {
            None => None,
            Some(text) => {
                let effect = TaintEffect::parse(&text.value);
                if effect.is_none() {
                    let message =
                        format_args!("`{}` is no taint effect: NoExecute, NoSchedule or PreferNoSchedule", text.value);
                    check.refuse(text.referenced, message);
                }
                Some(effect?)
            }
        };
        Some(Toleration { key: self.key.clone(), value, effect })
    }
}

fn amounts(texts: &BTreeMap<String, Text>, check: &mut Check) -> Amounts {
    let mut amounts = Amounts::default();
    for (name, text) in texts {
        match parse_quantity_milli(&text.value) {
            #[expect(clippy::cast_precision_loss, reason = "Ray has it as a float as well")]
            Ok(milli) if amounts.set(name, milli as f64 / 1000.0) => {}
            Ok(_) => check.refuse(text.referenced, format_args!("{} {name} is more than any worker has", text.value)),
            Err(error) => check.refuse(text.referenced, error),
        }
    }
    amounts
}

fn path(text: Option<&Text>, check: &mut Check) -> Option<PathBuf> {
    let text = text?;
    if !Path::new(&text.value).is_absolute() {
        check.refuse(text.referenced, "expected the file's full path");
    }
    Some(PathBuf::from(&text.value))
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = host.starts_with('[') && host.ends_with(']') || !host.contains([':', '/', '@']);
    !host.is_empty() && is_host && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Listed, Overrides, parse};

    const GROUP: &str = "groups: [{name: a, min: 0, max: 1, instanceType: m5.xlarge}]\n";

    fn amounts(all: &[(&str, f64)]) -> Amounts {
        let mut amounts = Amounts::default();
        all.iter().for_each(|(name, amount)| assert!(amounts.set(name, *amount)));
        amounts
    }

    #[test]
    fn a_cluster_is_read_with_kuberays_labels_and_rays_counts() {
        let text = format!(
            "{GROUP}ray:
  clusters:
    - name: train
      namespace: ml
      address: train-head-svc.ml.svc:6379
      tokenFile: /etc/ebb/ray/token
      caFile: /etc/ebb/ray/ca.crt
      certFile: /etc/ebb/ray/tls.crt
      keyFile: /etc/ebb/ray/tls.key
      workerGroups:
        - {{name: cpu, maxReplicas: 10, requests: {{cpu: 3500m, memory: 12Gi}}}}
        - name: gpu
          minReplicas: 1
          maxReplicas: 4
          requests: {{cpu: 7, nvidia.com/gpu: 1}}
          resources: {{CPU: 7, GPU: 1, accelerator_type:T4: 0.001}}
          labels: {{app: gpu-workers}}
          nodeSelector: {{pool: gpu}}
          tolerations: [{{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}}]
      drive: {{queueDepth: 2, upscalingSpeed: 0.5}}
"
        );
        let policy = parse(&text, &Overrides::default()).unwrap();
        let cluster = &policy.ray["ml/train"];
        let file = |name: &str| Path::new("/etc/ebb/ray").join(name);
        assert_eq!((&cluster.token_file, &cluster.ca_file), (&Some(file("token")), &Some(file("ca.crt"))));
        let client = ClientCertificate { cert_file: file("tls.crt"), key_file: file("tls.key") };
        assert_eq!(cluster.client, Some(client));
        let [cpu, gpu] = &cluster.worker_groups[..] else { panic!("{cluster:?}") };
        assert_eq!(cpu.resources, amounts(&[("CPU", 4.0), ("memory", (12_u64 << 30) as f64)]));
        assert_eq!((cpu.min, cpu.max, cpu.pod.requests.amount("pods")), (0, 10, 1));
        let labels = [("ray.io/cluster".to_owned(), "train".to_owned()), ("ray.io/group".to_owned(), "cpu".to_owned())];
        assert_eq!(cpu.pod.labels, labels.into());
        assert_eq!(gpu.resources, amounts(&[("CPU", 7.0), ("GPU", 1.0), ("accelerator_type:T4", 0.001)]));
        assert_eq!((gpu.min, gpu.pod.labels.len()), (1, 1));
        let toleration =
            Toleration { key: Some("nvidia.com/gpu".into()), value: None, effect: Some(TaintEffect::NoSchedule) };
        assert_eq!(gpu.pod.tolerations, [toleration]);
        let drive = Drive { queue_depth: 2, idle_timeout: Duration::from_secs(60), upscaling_speed: Some(500) };
        assert_eq!(cluster.drive, Some(drive));
        assert!(cluster.report_launches && !cluster.pod_deletion_cost);
        assert!(!cluster.learns_groups);
        assert!(parse(GROUP, &Overrides::default()).unwrap().ray.is_empty());

        let short = format!("{GROUP}ray: {{clusters: [{{name: train, namespace: ml}}]}}");
        let cluster = &parse(&short, &Overrides::default()).unwrap().ray["ml/train"];
        assert_eq!(cluster.address, "train-head-svc.ml.svc:6379");
        assert!(cluster.learns_groups && cluster.worker_groups.is_empty());
    }

    #[test]
    fn all_that_is_wrong_with_a_cluster_is_said() {
        let text = format!(
            "{GROUP}ray:
  clusters:
    - {{name: a, namespace: '', address: head, workerGroups: []}}
    - name: b
      namespace: ml
      address: 'http://head:6379'
      tokenFile: token
      workerGroups:
        - {{name: w, minReplicas: 3, maxReplicas: 2, requests: {{}}}}
        - {{name: w, maxReplicas: x, requests: {{cpu: 1}}, resources: {{CPU: many}}, tolerations: [{{operator: In}}]}}
    - {{name: b, namespace: ml, address: 'head:0', workerGroups: [{{name: w, maxReplicas: 1, requests: {{cpu: 1}}}}], drive: {{upscalingSpeed: 0, idleTimeout: x}}}}
    - {{name: c, namespace: ml, address: 'head:1', certFile: /c, workerGroups: [{{name: w, maxReplicas: 1, requests: {{cpu: 1}}}}]}}
"
        );
        let problems = parse(&text, &Overrides::default()).unwrap_err();
        let listed = Listed { path: Path::new("f"), problems: &problems }.to_string();
        let expected = [
            "f:4:28: expected the cluster's namespace",
            "f:4:41: `head` is no HOST:PORT of a Ray head, as in train-head-svc.ml.svc:6379",
            "f:4:61: expected a worker group; without this key they are the RayCluster's",
            "f:7:16: `http://head:6379` is no HOST:PORT of a Ray head, as in train-head-svc.ml.svc:6379",
            "f:8:18: expected the file's full path",
            "f:10:34: minReplicas 3 is above maxReplicas 2",
            "f:10:63: expected what a worker's pod requests, or any node has room for it",
            "f:11:18: expected a name that no other worker group of the cluster has",
            "f:11:34: `x` is no whole number of 0 or more",
            "f:11:74: `many` is no Kubernetes quantity as in 500m, 4 or 16Gi",
            "f:11:106: `In` is no operator of a toleration: Equal or Exists",
            "f:12:14: a second Ray cluster ml/b",
            "f:12:41: `head:0` is no HOST:PORT of a Ray head, as in train-head-svc.ml.svc:6379",
            "f:12:138: `0` is no number above 0 as in 1 or 0.5",
            "f:12:154: `x` is no duration as in 30s, 10m or 1h30m",
            "f:13:61: expected both certFile and keyFile, or neither",
            "f:13:61: needs a caFile: without, the head is spoken to in the clear",
        ];
        assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    }
}
