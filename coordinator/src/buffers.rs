//! CapacityBuffers (API group autoscaling.x-k8s.io): what they ask for goes to the core with what they refer to, and what
//! became of it to their status. Who wants them installs their definition; without it nothing is done here.
//!
//! Everything is looked at anew now and then, and when a watch says that a buffer has changed: there are few of them, and
//! watches on all that they may refer to would cost more than they tell.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::buffer::{self, Buffer, Change, Problem, Source};
use ebb_core::fleet::{Event, Failure};
use ebb_core::kubernetes;
use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PodTemplate, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, ListParams, Object, Patch, PatchParams, WatchEvent, WatchParams};
use kube::core::{GroupVersionKind, NamespaceResourceScope};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::effects::CallError;
use crate::kubernetes::{CONTROLLER, call_error};

/// The newest first; they differ in nothing that is read here.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// The only way to keep room that there is here; another is for another controller.
const ACTIVE: &str = "buffer.x-k8s.io/active-capacity";
/// How old what a buffer refers to may be.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The API server ends a watch by itself that nobody reads any more.
const WATCH_SECONDS: u32 = 15;
/// Between two looks whether somebody has installed the objects' definition.
const ABSENT: Duration = Duration::from_secs(60);
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
const BACKOFF: Duration = Duration::from_secs(5);
const PAGE: u32 = 500;

pub type CapacityBuffer = Object<Spec, Status>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub provisioning_strategy: Option<String>,
    pub pod_template_ref: Option<TemplateRef>,
    pub scalable_ref: Option<ScalableRef>,
    pub replicas: Option<u32>,
    pub percentage: Option<u32>,
    /// Numbers or texts.
    pub limits: Option<BTreeMap<String, Value>>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TemplateRef {
    pub name: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScalableRef {
    #[serde(default)]
    pub api_group: String,
    pub kind: String,
    pub name: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub pod_template_ref: Option<TemplateRef>,
    pub pod_template_generation: Option<i64>,
    pub replicas: Option<u32>,
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

fn resource(version: &str) -> ApiResource {
    let kind = GroupVersionKind::gvk("autoscaling.x-k8s.io", version, "CapacityBuffer");
    ApiResource::from_gvk_with_plural(&kind, "capacitybuffers")
}

/// Keeps the core told of all buffers.
pub struct Buffers {
    client: Client,
    inbox: mpsc::Sender<Event>,
    /// What the core was told last, by namespace and name.
    told: BTreeMap<(String, String), Buffer>,
    /// UID and generation of each that there is, of another strategy or not.
    seen: BTreeMap<String, i64>,
    /// Whether it was said that buffers may not be read.
    complained: bool,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read capacity buffers and what they refer to")]
    Kube(#[from] kube::Error),
    #[error("capacity buffers were not read in {} s", LOOK_TIMEOUT.as_secs())]
    Late(#[from] Elapsed),
}

/// Where to watch on from.
struct Looked {
    api: Api<CapacityBuffer>,
    version: String,
}

impl Buffers {
    pub fn new(client: Client, inbox: mpsc::Sender<Event>) -> Self {
        Self { client, inbox, told: BTreeMap::new(), seen: BTreeMap::new(), complained: false }
    }

    /// For ever. `looked`: what is to be done after the first look, before which it is not known what nodes are kept for.
    pub async fn watch(mut self, looked: impl AsyncFnOnce()) {
        let mut looked = Some(looked);
        loop {
            match timeout(LOOK_TIMEOUT, self.look()).await.map_err(Error::from).flatten() {
                Ok(found) => {
                    if let Some(looked) = looked.take() {
                        looked().await;
                    }
                    match found {
                        Some(found) => self.wait_for_news(found).await,
                        None => sleep(ABSENT).await,
                    }
                }
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    tracing::warn!(error = format!("{error:#}"), "buffers stay what they were");
                    sleep(BACKOFF).await;
                }
            }
        }
    }

    /// Tells the core what is new. `None`: the cluster has no such objects, or does not show them.
    async fn look(&mut self) -> Result<Option<Looked>, Error> {
        let Some((looked, found)) = self.list().await? else {
            self.seen.clear();
            self.tell(BTreeMap::new()).await;
            return Ok(None);
        };
        let mut buffers = BTreeMap::new();
        for object in found.iter().filter(|object| is_ours(&object.spec)) {
            let buffer = self.resolve(object).await?;
            buffers.insert((buffer.namespace.clone(), buffer.name.clone()), buffer);
        }
        self.seen = found.iter().map(mark).collect();
        self.tell(buffers).await;
        Ok(Some(looked))
    }

    async fn list(&mut self) -> Result<Option<(Looked, Vec<CapacityBuffer>)>, Error> {
        for version in VERSIONS {
            let api: Api<CapacityBuffer> = Api::all_with(self.client.clone(), &resource(version));
            match pages(&api).await {
                Ok((version, found)) => return Ok(Some((Looked { api, version }, found))),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    if !std::mem::replace(&mut self.complained, true) {
                        tracing::warn!(error = status.message, "capacity buffers may not be read, so none is kept");
                    }
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    async fn tell(&mut self, buffers: BTreeMap<(String, String), Buffer>) {
        let gone = self.told.keys().filter(|key| !buffers.contains_key(*key));
        let gone = gone.map(|(namespace, name)| Change::Deleted { namespace: namespace.clone(), name: name.clone() });
        let new = buffers.iter().filter(|(key, buffer)| self.told.get(*key) != Some(*buffer));
        let new = new.map(|(_, buffer)| Change::Applied(Box::new(buffer.clone())));
        for change in gone.chain(new).collect::<Vec<_>>() {
            // The driver is gone only when the process is about to be.
            let _ = self.inbox.send(Event::Buffer(change)).await;
        }
        self.told = buffers;
    }

    /// Returns when a buffer has changed, or it is time to look again.
    async fn wait_for_news(&self, Looked { api, version }: Looked) {
        let deadline = Instant::now() + LOOK_EVERY;
        let news = async {
            let params = WatchParams { timeout: Some(WATCH_SECONDS), ..WatchParams::default() };
            let mut stream = std::pin::pin!(api.watch(&params, &version).await?.map_err(Error::from));
            while let Some(event) = stream.try_next().await? {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        let (uid, generation) = mark(&object);
                        if self.seen.get(&uid) != Some(&generation) {
                            return Ok(true);
                        }
                    }
                    WatchEvent::Deleted(_) => return Ok(true),
                    WatchEvent::Bookmark(_) => {}
                    WatchEvent::Error(_) => break,
                }
            }
            Ok::<_, Error>(false)
        };
        // A watch that fails tells nothing; the next look tells more.
        if !matches!(timeout_at(deadline, news).await, Ok(Ok(true))) {
            sleep_until(deadline).await;
        }
    }

    async fn resolve(&self, object: &CapacityBuffer) -> Result<Buffer, Error> {
        let spec = &object.spec;
        let namespace = object.namespace().unwrap_or_default();
        let limits = spec.limits.as_ref().map(|limits| {
            let quantity = |value: &Value| Quantity(value.as_str().map_or_else(|| value.to_string(), Into::into));
            buffer::limits(&limits.iter().map(|(name, value)| (name.clone(), quantity(value))).collect())
        });
        let (limits, source) = match limits.transpose() {
            Err(problem) => (None, Err(problem)),
            Ok(limits) => (limits, self.source(&namespace, spec).await?),
        };
        Ok(Buffer {
            namespace,
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            generation: object.meta().generation.unwrap_or_default(),
            replicas: spec.replicas,
            percentage: spec.percentage,
            limits,
            source,
        })
    }

    async fn source(&self, namespace: &str, spec: &Spec) -> Result<Result<Source, Problem>, Error> {
        let scalable = match (&spec.pod_template_ref, &spec.scalable_ref) {
            (Some(reference), None) => {
                let found = self.get::<PodTemplate>(namespace, &reference.name).await?;
                return Ok(found.map(|found| {
                    let (name, generation) = (found.name_any(), found.metadata.generation.unwrap_or_default());
                    let template = found.template.unwrap_or_default();
                    let pod = kubernetes::Pod::of_template(&template, namespace);
                    Source { pod, replicas: None, template: Some(buffer::Template { name, generation }) }
                }));
            }
            (None, Some(scalable)) => scalable,
            (None, None) | (Some(_), Some(_)) => return Ok(Err(Problem::NoReference)),
        };
        let ScalableRef { api_group, kind, name } = scalable;
        // What is left out is one.
        let runs = |template: Option<PodTemplateSpec>, replicas: Option<i32>| Source {
            pod: kubernetes::Pod::of_template(&template.unwrap_or_default(), namespace),
            replicas: Some(u32::try_from(replicas.unwrap_or(1)).unwrap_or(0)),
            template: None,
        };
        Ok(match (api_group.as_str(), kind.as_str()) {
            ("apps", "Deployment") => self.get::<Deployment>(namespace, name).await?.map(|found| {
                let spec = found.spec.unwrap_or_default();
                runs(Some(spec.template), spec.replicas)
            }),
            ("apps", "ReplicaSet") => self.get::<ReplicaSet>(namespace, name).await?.map(|found| {
                let spec = found.spec.unwrap_or_default();
                runs(spec.template, spec.replicas)
            }),
            ("apps", "StatefulSet") => self.get::<StatefulSet>(namespace, name).await?.map(|found| {
                let spec = found.spec.unwrap_or_default();
                runs(Some(spec.template), spec.replicas)
            }),
            ("batch", "Job") => self.get::<Job>(namespace, name).await?.map(|found| {
                let spec = found.spec.unwrap_or_default();
                runs(Some(spec.template), spec.parallelism)
            }),
            ("" | "core", "ReplicationController") => {
                self.get::<ReplicationController>(namespace, name).await?.map(|found| {
                    let spec = found.spec.unwrap_or_default();
                    runs(spec.template, spec.replicas)
                })
            }
            _ => Err(Problem::Unsupported { kind: kind.clone() }),
        })
    }

    async fn get<K>(&self, namespace: &str, name: &str) -> Result<Result<K, Problem>, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let (kind, name) = (K::kind(&()).into_owned(), name.to_owned());
        match api.get_opt(&name).await {
            Ok(found) => Ok(found.ok_or(Problem::NotFound { kind, name })),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(Err(Problem::Denied { kind, name })),
            Err(error) => Err(error.into()),
        }
    }
}

async fn pages(api: &Api<CapacityBuffer>) -> Result<(String, Vec<CapacityBuffer>), kube::Error> {
    let mut page = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let list = api.list(&page).await?;
        found.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page.continue_token = Some(token),
            None => return Ok((list.metadata.resource_version.unwrap_or_default(), found)),
        }
    }
}

fn is_ours(spec: &Spec) -> bool {
    spec.provisioning_strategy.as_deref().is_none_or(|strategy| strategy.is_empty() || strategy == ACTIVE)
}

fn mark(object: &CapacityBuffer) -> (String, i64) {
    (object.uid().unwrap_or_default(), object.meta().generation.unwrap_or_default())
}

/// Writes the status on the buffer, if it has this UID and its status is another.
pub async fn show(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: &str,
    status: &buffer::Status,
) -> Result<(), CallError> {
    for version in VERSIONS {
        let api: Api<CapacityBuffer> = Api::namespaced_with(client.clone(), namespace, &resource(version));
        let found = match api.get(name).await {
            Ok(found) if found.uid().as_deref() == Some(uid) => found,
            Ok(_) => continue,
            // No buffer, or no such version: of that the server says so in a way of its own.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(call_error(&error)),
        };
        let before = found.status.clone().unwrap_or_default();
        let after = merged(&before, status, Timestamp::now());
        if after == before {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": uid, "resourceVersion": found.resource_version()},
            "status": {
                "podTemplateRef": after.pod_template_ref,
                "podTemplateGeneration": after.pod_template_generation,
                "provisioningStrategy": ACTIVE,
                "replicas": after.replicas,
                "conditions": after.conditions,
            },
        });
        let params = PatchParams { field_manager: Some(CONTROLLER.into()), ..PatchParams::default() };
        api.patch_status(name, &params, &Patch::Merge(patch)).await.map_err(|error| call_error(&error))?;
        return Ok(());
    }
    Err(CallError {
        failure: Failure::NotFound,
        detail: format!("there is no buffer {namespace}/{name} {uid} any more"),
    })
}

/// What others have said stays, and so does the time since when a condition is what it is.
fn merged(before: &Status, status: &buffer::Status, now: Timestamp) -> Status {
    let mut conditions = before.conditions.clone();
    for buffer::Condition { name, holds, reason, message } in status.conditions() {
        let state = if holds { "True" } else { "False" };
        let known = conditions.iter().find(|known| known.type_ == name && known.status == state);
        let condition = Condition {
            last_transition_time: known.map_or(Time(now), |known| known.last_transition_time.clone()),
            message,
            observed_generation: Some(status.generation),
            reason: reason.into(),
            status: state.into(),
            type_: name.into(),
        };
        match conditions.iter_mut().find(|known| known.type_ == name) {
            Some(known) => *known = condition,
            None => conditions.push(condition),
        }
    }
    Status {
        pod_template_ref: status.template.as_ref().map(|template| TemplateRef { name: template.name.clone() }),
        pod_template_generation: status.template.as_ref().map(|template| template.generation),
        replicas: status.replicas,
        conditions,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use ebb_core::buffer::Room;
    use tokio::net::TcpListener;

    use super::*;

    /// Paths and what is there. What is not there is answered 404, unless all is answered with a failure.
    #[derive(Clone, Default)]
    struct Server {
        objects: Arc<Mutex<BTreeMap<String, Value>>>,
        failure: Arc<Mutex<Option<u16>>>,
    }

    impl Server {
        fn put(&self, path: &str, object: Value) {
            self.objects.lock().unwrap().insert(path.to_owned(), object);
        }

        fn put_buffers(&self, version: &str, items: &[Value]) {
            let list = json!({"metadata": {"resourceVersion": "7"}, "items": items});
            self.put(&format!("/apis/autoscaling.x-k8s.io/{version}/capacitybuffers"), list);
        }

        fn answer(&self, uri: &Uri) -> (StatusCode, String) {
            let code = *self.failure.lock().unwrap();
            let found = self.objects.lock().unwrap().get(uri.path()).cloned();
            let (code, body) = match (code, found) {
                (None, Some(object)) => (200, object),
                (None, None) if uri.path().starts_with("/apis/autoscaling") => {
                    return (StatusCode::NOT_FOUND, "404 page not found".into());
                }
                (code, _) => {
                    let code = code.unwrap_or(404);
                    let reason = if code == 404 { "NotFound" } else { "Other" };
                    (code, json!({"status": "Failure", "code": code, "reason": reason, "message": "x"}))
                }
            };
            (StatusCode::from_u16(code).unwrap(), body.to_string())
        }

        async fn buffers(&self) -> (Buffers, mpsc::Receiver<Event>) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
            let server = self.clone();
            let router = Router::new().fallback(async move |uri: Uri| server.answer(&uri));
            tokio::spawn(async move { axum::serve(listener, router).await });
            let (inbox, events) = mpsc::channel(64);
            (Buffers::new(Client::try_from(kube::Config::new(url)).unwrap(), inbox), events)
        }
    }

    fn buffer(name: &str, spec: &Value) -> Value {
        json!({"metadata": {"namespace": "ml", "name": name, "uid": name, "generation": 1}, "spec": spec})
    }

    fn pod_spec() -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}})
    }

    fn told(events: &mut mpsc::Receiver<Event>) -> Vec<Change> {
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            let Event::Buffer(change) = event else { panic!("{event:?}") };
            told.push(change);
        }
        told
    }

    /// Name and for how many it wants room, or why not.
    fn wishes(changes: &[Change]) -> Vec<(&str, Result<u32, String>)> {
        fn wish(change: &Change) -> (&str, Result<u32, String>) {
            match change {
                Change::Applied(buffer) => {
                    let wish = buffer.wish().map(|(_, count)| count).map_err(|problem| problem.to_string());
                    (buffer.name.as_str(), wish)
                }
                Change::Deleted { name, .. } => (name.as_str(), Err("deleted".to_owned())),
            }
        }
        changes.iter().map(wish).collect()
    }

    #[tokio::test]
    async fn without_their_definition_there_are_none_and_all_is_known() {
        let server = Server::default();
        for code in [404, 403] {
            *server.failure.lock().unwrap() = Some(code);
            let (mut buffers, mut events) = server.buffers().await;
            assert!(buffers.look().await.unwrap().is_none());
            assert!(told(&mut events).is_empty());
            // The rest of the coordinator goes on.
            let (looked, waits) = tokio::sync::oneshot::channel();
            let task = tokio::spawn(buffers.watch(async move || looked.send(()).unwrap()));
            waits.await.unwrap();
            task.abort();
        }
    }

    #[tokio::test]
    async fn what_buffers_refer_to_is_read_in_whichever_version_there_is() {
        for version in VERSIONS {
            let server = Server::default();
            let (mut buffers, mut events) = server.buffers().await;
            let template = json!({"podTemplateRef": {"name": "train"}, "limits": {"cpu": 7}});
            let workload =
                json!({"scalableRef": {"apiGroup": "apps", "kind": "Deployment", "name": "web"}, "percentage": 20});
            let foreign = json!({"provisioningStrategy": "other", "podTemplateRef": {"name": "train"}, "replicas": 1});
            let custom =
                json!({"scalableRef": {"apiGroup": "ray.io", "kind": "RayCluster", "name": "r"}, "replicas": 1});
            let items = [("a", template), ("b", workload), ("c", foreign), ("d", custom)];
            let items = items.map(|(name, spec)| buffer(name, &spec));
            server.put_buffers(version, &items);
            let train = json!({"metadata": {"name": "train", "generation": 4}, "template": pod_spec()});
            server.put("/api/v1/namespaces/ml/podtemplates/train", train);
            assert!(buffers.look().await.unwrap().is_some());
            let first = told(&mut events);
            let [("a", Ok(3)), ("b", Err(missing)), ("d", Err(custom))] = &wishes(&first)[..] else {
                panic!("{first:?}")
            };
            assert_eq!(missing, "there is no Deployment web in its namespace");
            assert!(custom.starts_with("a RayCluster tells no pod template"), "{custom}");
            let Change::Applied(first) = &first[0] else { panic!("{first:?}") };
            let Ok(Source { template: Some(template), .. }) = &first.source else { panic!("{first:?}") };
            assert_eq!((template.name.as_str(), template.generation), ("train", 4));

            // Only what is new is told.
            let spec = json!({"replicas": 11, "selector": {}, "template": pod_spec()});
            server
                .put("/apis/apps/v1/namespaces/ml/deployments/web", json!({"metadata": {"name": "web"}, "spec": spec}));
            buffers.look().await.unwrap();
            assert_eq!(wishes(&told(&mut events)), [("b", Ok(3))]);
            server.put_buffers(version, &items[1..2]);
            buffers.look().await.unwrap();
            assert_eq!(
                wishes(&told(&mut events)),
                [("a", Err("deleted".to_owned())), ("d", Err("deleted".to_owned()))]
            );
        }
    }

    #[tokio::test]
    async fn a_server_that_fails_deletes_no_buffer() {
        let server = Server::default();
        let (mut buffers, mut events) = server.buffers().await;
        server.put_buffers("v1beta1", &[buffer("a", &json!({"podTemplateRef": {"name": "train"}, "replicas": 1}))]);
        buffers.look().await.unwrap();
        assert_eq!(told(&mut events).len(), 1);
        *server.failure.lock().unwrap() = Some(500);
        buffers.look().await.err().unwrap();
        *server.failure.lock().unwrap() = None;
        buffers.look().await.unwrap();
        assert!(told(&mut events).is_empty());
    }

    #[tokio::test]
    async fn a_status_is_written_in_the_version_that_there_is() {
        let server = Server::default();
        let (Buffers { client, .. }, _events) = server.buffers().await;
        let status = buffer::Status { generation: 1, template: None, replicas: Some(1), room: Room::There };
        let failure = show(&client, "ml", "a", "a", &status).await.unwrap_err().failure;
        assert_eq!(failure, Failure::NotFound);
        let path = "/apis/autoscaling.x-k8s.io/v1alpha1/namespaces/ml/capacitybuffers/a";
        server.put(path, buffer("a", &json!({})));
        server.put(&format!("{path}/status"), buffer("a", &json!({})));
        show(&client, "ml", "a", "a", &status).await.unwrap();
        assert_eq!(show(&client, "ml", "a", "former", &status).await.unwrap_err().failure, Failure::NotFound);
    }

    #[test]
    fn a_condition_has_been_what_it_is_since_it_became_so_and_others_stay() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let status = |room| buffer::Status { generation: 2, template: None, replicas: Some(3), room };
        let foreign = Condition { type_: "Foreign".into(), last_transition_time: Time(at(1)), ..condition() };
        let before = Status { conditions: vec![foreign.clone()], ..Status::default() };
        let first = merged(&before, &status(Room::Coming { there: 1 }), at(10));
        assert_eq!(first.conditions[0], foreign);
        let second = merged(&first, &status(Room::There), at(20));
        let since = |status: &Status| status.conditions.iter().map(|it| it.last_transition_time.0).collect::<Vec<_>>();
        assert_eq!(since(&second), [at(1), at(10), at(10)]);
        assert_eq!(second.conditions[2].reason, "RoomThere");
        assert_eq!(merged(&second, &status(Room::There), at(30)), second);
        let refused = merged(&second, &status(Room::Refused { there: 1, groups: vec![] }), at(40));
        assert_eq!(since(&refused), [at(1), at(10), at(40)]);
    }

    fn condition() -> Condition {
        let last_transition_time = Time(Timestamp::from_second(0).unwrap());
        let (message, reason, status, type_) = ("x".into(), "X".into(), "True".into(), "X".into());
        Condition { last_transition_time, message, observed_generation: None, reason, status, type_ }
    }
}
