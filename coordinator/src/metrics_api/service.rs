//! Tells the API server by which CA we are known, in the APIServices that the chart made. One of another owner is theirs.

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::MetricsApi;
use crate::kubernetes::CONTROLLER;
use crate::tls::{Certificate, Telling};

impl MetricsApi {
    fn api_service(self) -> &'static str {
        match self {
            Self::Resource => "v1beta1.metrics.k8s.io",
            Self::Custom => "v1beta2.custom.metrics.k8s.io",
        }
    }

    /// Other versions of the group, which others may serve. Of two the API server prefers one by priority, and the HPA
    /// asks for none but that.
    fn rivals(self) -> &'static [&'static str] {
        match self {
            Self::Resource => &[],
            Self::Custom => &["v1beta1.custom.metrics.k8s.io"],
        }
    }

    /// The chart's value.
    fn setting(self) -> &'static str {
        match self {
            Self::Resource => "metricsApi.enabled",
            Self::Custom => "customMetricsApi.enabled",
        }
    }
}

/// Keeps it told, for ever.
pub(crate) async fn keep(
    api: MetricsApi,
    client: Client,
    namespace: String,
    certificates: watch::Receiver<Option<Certificate>>,
) {
    let services = Api::<APIService>::all(client);
    let mut telling = Telling::new(api.api_service(), certificates);
    while let Some(ca) = telling.due().await {
        telling.done(tell(api, &services, &namespace, &ca).await);
    }
}

async fn tell(api: MetricsApi, services: &Api<APIService>, namespace: &str, ca: &str) -> anyhow::Result<()> {
    let name = api.api_service();
    let context = || format!("APIService {name}");
    let standing = services.get(name).await.with_context(context)?;
    match change(&standing, namespace, ca) {
        Ok(None) => {}
        Ok(Some(patch)) => {
            let params = PatchParams { field_manager: Some(CONTROLLER.into()), ..PatchParams::default() };
            services.patch(name, &params, &Patch::Merge(patch)).await.with_context(context)?;
            tracing::info!(api_service = name, "CA written");
        }
        Err(owner) => {
            let setting = api.setting();
            tracing::warn!(
                api_service = name,
                owner,
                "it is another's, and left alone: remove what serves it before Ebb is to (its Helm release, its addon), or \
                 set {setting} to false"
            );
        }
    }
    for rival in api.rivals() {
        let context = || format!("APIService {rival}");
        let Some(standing) = services.get_opt(rival).await.with_context(context)? else { continue };
        if let Some(owner) = owner(&standing, namespace) {
            tracing::warn!(
                api_service = rival,
                owner,
                "another serves this version of the group, and HPAs ask only for the version of higher priority: have one of \
                 the two"
            );
        }
    }
    Ok(())
}

/// A merge patch, where one is needed; an error names whose it is.
fn change(standing: &APIService, namespace: &str, ca: &str) -> Result<Option<Value>, String> {
    if let Some(owner) = owner(standing, namespace) {
        return Err(owner);
    }
    let bundle = ByteString(ca.as_bytes().to_vec());
    if standing.spec.as_ref().is_some_and(|spec| spec.ca_bundle.as_ref() == Some(&bundle)) {
        return Ok(None);
    }
    // Who skipped the check until there was a bundle need not any more; the API server refuses both together.
    Ok(Some(json!({"spec": {"caBundle": bundle, "insecureSkipTLSVerify": null}})))
}

/// Whose it is; `None`: ours.
fn owner(standing: &APIService, namespace: &str) -> Option<String> {
    let service = standing.spec.as_ref().and_then(|spec| spec.service.as_ref());
    match service.map(|service| (service.namespace.as_deref(), service.name.as_deref())) {
        Some((Some(of), Some(crate::names::SERVICE))) if of == namespace => None,
        Some((of, name)) => Some(format!("Service {}/{}", of.unwrap_or_default(), name.unwrap_or_default())),
        None => Some("the API server itself".to_owned()),
    }
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
