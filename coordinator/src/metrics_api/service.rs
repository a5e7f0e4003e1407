//! Tells the API server by which CA we are known, in the APIService that the chart made. One of another owner is theirs.

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::kubernetes::CONTROLLER;
use crate::tls::{Certificate, Telling};

const NAME: &str = "v1beta1.metrics.k8s.io";

/// Keeps it told, for ever.
pub(crate) async fn keep(client: Client, namespace: String, certificates: watch::Receiver<Option<Certificate>>) {
    let services = Api::<APIService>::all(client);
    let mut telling = Telling::new(NAME, certificates);
    while let Some(ca) = telling.due().await {
        telling.done(tell(&services, &namespace, &ca).await);
    }
}

async fn tell(services: &Api<APIService>, namespace: &str, ca: &str) -> anyhow::Result<()> {
    let context = || format!("APIService {NAME}");
    let standing = services.get(NAME).await.with_context(context)?;
    match change(&standing, namespace, ca) {
        Ok(None) => {}
        Ok(Some(patch)) => {
            let params = PatchParams { field_manager: Some(CONTROLLER.into()), ..PatchParams::default() };
            services.patch(NAME, &params, &Patch::Merge(patch)).await.with_context(context)?;
            tracing::info!(api_service = NAME, "CA written");
        }
        Err(owner) => tracing::warn!(
            api_service = NAME,
            owner,
            "it is another's, and left alone: remove what serves it before Ebb is to (metrics-server's Helm release, its \
             addon), or set metricsApi.enabled to false"
        ),
    }
    Ok(())
}

/// A merge patch, where one is needed; an error names whose it is.
fn change(standing: &APIService, namespace: &str, ca: &str) -> Result<Option<Value>, String> {
    let spec = standing.spec.as_ref();
    let service = spec.and_then(|spec| spec.service.as_ref());
    let owner = service.map(|service| (service.namespace.as_deref(), service.name.as_deref()));
    if owner != Some((Some(namespace), Some(crate::names::SERVICE))) {
        return Err(match owner {
            Some((of, name)) => format!("Service {}/{}", of.unwrap_or_default(), name.unwrap_or_default()),
            None => "the API server itself".to_owned(),
        });
    }
    let bundle = ByteString(ca.as_bytes().to_vec());
    if spec.is_some_and(|spec| spec.ca_bundle.as_ref() == Some(&bundle)) {
        return Ok(None);
    }
    // Who skipped the check until there was a bundle need not any more; the API server refuses both together.
    Ok(Some(json!({"spec": {"caBundle": bundle, "insecureSkipTLSVerify": null}})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, bundle: Value) -> APIService {
        let service = json!({"namespace": namespace, "name": name});
        let spec = json!({
            "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": service, "caBundle": bundle,
        });
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    #[test]
    fn only_our_own_api_service_is_changed_and_only_when_it_lacks_the_ca() {
        let patch = json!({"spec": {"caBundle": "Q0E=", "insecureSkipTLSVerify": null}});
        let ours = |bundle| service("ebb", "ebb-coordinator", bundle);
        assert_eq!(change(&ours(Value::Null), "ebb", "CA"), Ok(Some(patch.clone())));
        assert_eq!(change(&ours("b2xk".into()), "ebb", "CA"), Ok(Some(patch)));
        assert_eq!(change(&ours("Q0E=".into()), "ebb", "CA"), Ok(None));
        let theirs = service("kube-system", "metrics-server", Value::Null);
        assert_eq!(change(&theirs, "ebb", "CA"), Err("Service kube-system/metrics-server".to_owned()));
        assert_eq!(change(&APIService::default(), "ebb", "CA"), Err("the API server itself".to_owned()));
    }
}
