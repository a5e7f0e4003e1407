//! A lab whose metrics APIs are the coordinator's, and a Deployment to scale.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;

use crate::{Ebb, Lab, LabOptions, Rights, free_port};

const SOON: Duration = Duration::from_secs(120);

pub const RESOURCE: &str = "v1beta1.metrics.k8s.io";
pub const CUSTOM: &str = "v1beta2.custom.metrics.k8s.io";

/// Without a coordinator. The APIServices lead to the port. More flags for kube-controller-manager.
pub async fn lab(controller_manager_args: &[&str]) -> (Ebb, u16) {
    let groups = vec!["name=cpu,type=m5.12xlarge,desired=1,max=1".to_owned()];
    let controller_manager_args = controller_manager_args.iter().map(|&flag| flag.to_owned()).collect();
    let lab = Lab::up(LabOptions { groups, controller_manager_args, ..LabOptions::default() }).await;
    // Helm makes one of what both have: rights on RayClusters besides.
    for manifests in ["ebb-ray.yaml", "ebb-custom-metrics-api.yaml"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests");
        lab.apply_file(folder.join(manifests)).await;
    }
    lab.kubectl(&["--namespace", "ebb", "delete", "deployment,service", "ebb-coordinator", "--cascade=foreground"])
        .await;
    let service = "{apiVersion: v1, kind: Service, metadata: {name: ebb-coordinator, namespace: ebb}, \
        spec: {type: ExternalName, externalName: localhost}}";
    lab.apply(service).await;
    let port = free_port();
    for api_service in [RESOURCE, CUSTOM] {
        lead_to(&lab, api_service, port).await;
    }
    (Ebb::installed(lab, Rights::Impersonation).await, port)
}

/// Starts the coordinator with this configuration, and waits until both APIs are there.
pub async fn serve(ebb: &mut Ebb, config: &str, port: u16) {
    let listen = format!("127.0.0.1:{port}");
    let both = "metrics.k8s.io,custom.metrics.k8s.io";
    ebb.start_coordinator(config, &["--listen-metrics-api", &listen, "--metrics-apis", both]).await;
    for api_service in [RESOURCE, CUSTOM] {
        ebb.lab.wait_until(api_service, SOON, async || is_available(&ebb.lab, api_service).await).await;
    }
}

pub async fn lead_to(lab: &Lab, api_service: &str, port: u16) {
    let patch = format!(r#"{{"spec": {{"service": {{"port": {port}}}}}}}"#);
    lab.kubectl(&["patch", "apiservice", api_service, "--type=merge", "--patch", &patch]).await;
}

async fn is_available(lab: &Lab, api_service: &str) -> bool {
    let condition = r#"jsonpath={.status.conditions[?(@.type=="Available")].status}"#;
    lab.kubectl(&["get", "apiservice", api_service, "--output", condition]).await == "True"
}

/// Each pod asks for 100m and 128Mi.
pub fn work(replicas: u32) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: work, namespace: default}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: work}}}}
  template:
    metadata: {{labels: {{app: work}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: work, image: work, resources: {{requests: {{cpu: 100m, memory: 128Mi}}}}}}]
"#
    )
}

/// That its replicas are wanted to be.
pub async fn replicas(lab: &Lab) -> u32 {
    let deployments: Api<Deployment> = Api::default_namespaced(lab.client().await);
    let deployment = deployments.get("work").await.expect("it is there");
    let replicas = deployment.spec.and_then(|spec| spec.replicas).expect("the API server sets it");
    u32::try_from(replicas).expect("it is not below zero")
}

/// So many of its pods, once they run.
pub async fn running(lab: &Lab, count: usize) -> Vec<Pod> {
    let mut pods = Vec::new();
    lab.wait_until("the pods to run", SOON, async || {
        pods = running_now(lab).await;
        pods.len() == count
    })
    .await;
    pods
}

pub async fn running_now(lab: &Lab) -> Vec<Pod> {
    let pods: Api<Pod> = Api::default_namespaced(lab.client().await);
    let pods = pods.list(&ListParams::default().labels("app=work")).await.expect("the admin may list pods").items;
    let runs = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    pods.into_iter().filter(runs).collect()
}
