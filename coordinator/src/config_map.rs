//! A ConfigMap of ours.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

/// Sets these keys, and makes it if it is not there. A conflict (409) says that somebody else wrote it meanwhile.
pub(crate) async fn set(api: &Api<ConfigMap>, name: &str, data: BTreeMap<String, String>) -> Result<(), kube::Error> {
    let params = PostParams::default();
    let Some(mut map) = api.get_opt(name).await? else {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
        return api.create(&params, &map).await.map(drop);
    };
    let before = map.data.clone();
    map.data.get_or_insert_default().extend(data);
    if map.data == before {
        return Ok(());
    }
    api.replace(name, &params, &map).await.map(drop)
}
