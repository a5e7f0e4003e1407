//! Whose node an agent's token is bound to. The API server says so; we only look.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use ebb_core::admission::{Found, NODE_NAME_CLAIM, NODE_UID_CLAIM};
use ebb_core::broker::{self, Claims, Own, POD_NAME_CLAIM, POD_UID_CLAIM};
use ebb_core::time;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::remembered::Remembered;

/// How long an answer is believed. Short enough for a deleted pod's token to be worth little, and long enough for an
/// agent that connects again and again not to reach the API server each time.
const BELIEVED: Duration = Duration::from_secs(60);
/// Answers kept: more than a cluster has nodes (Kubernetes: 5000).
const ANSWERS: usize = 8192;
/// Questions asked of the API server at once, for when all agents come back after a restart of ours.
const REVIEWS: usize = 16;
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the token is not accepted: {0}")]
    Unauthenticated(String),
    #[error("the token is of {0}, which is not the agent")]
    NotAgent(String),
    #[error(transparent)]
    Refused(#[from] broker::Refusal),
    #[error("the token cannot be reviewed now: {0}")]
    Unavailable(String),
}

/// Asks about a token and its pod: the API server, or a test.
pub trait Review: Send + Sync + 'static {
    fn review(&self, token: &str, audience: &str) -> impl Future<Output = Result<TokenReviewStatus, String>> + Send;

    /// The pod of that name in the agents' namespace and its node, as they are now.
    fn find(&self, pod: &str) -> impl Future<Output = Result<Found, String>> + Send;
}

pub struct ClusterReview {
    pub client: Client,
    /// The agents'.
    pub namespace: String,
}

impl Review for ClusterReview {
    async fn review(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, String> {
        let spec = TokenReviewSpec { audiences: Some(vec![audience.to_owned()]), token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api = Api::<TokenReview>::all(self.client.clone());
        let review = api.create(&PostParams::default(), &review).await.map_err(|error| error.to_string())?;
        Ok(review.status.unwrap_or_default())
    }

    async fn find(&self, pod: &str) -> Result<Found, String> {
        look(&self.client, &self.namespace, pod).await.map_err(|error| error.to_string())
    }
}

/// A pod and its node, from the API server itself: what our watches say may be older than the question.
pub(crate) async fn look(client: &Client, namespace: &str, pod: &str) -> kube::Result<Found> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let Some(pod) = pods.get_opt(pod).await? else { return Ok(Found::default()) };
    let mut found = Found { pod_made: made(&pod.metadata), pod_uid: pod.metadata.uid, ..Found::default() };
    found.node = pod.spec.and_then(|spec| spec.node_name).filter(|node| !node.is_empty());
    if let Some(node) = &found.node {
        let node = Api::<Node>::all(client.clone()).get_metadata_opt(node).await?;
        let metadata = node.map(|node| node.metadata).unwrap_or_default();
        found.node_made = made(&metadata);
        found.node_uid = metadata.uid;
    }
    Ok(found)
}

fn made(metadata: &ObjectMeta) -> Option<time::Instant> {
    let made = metadata.creation_timestamp.as_ref()?;
    u64::try_from(made.0.as_millisecond()).ok().map(time::Instant::from_millis)
}

/// Answers about tokens, remembered for a while.
pub struct Tokens<R> {
    review: R,
    /// Whom they must be made for: us.
    audience: &'static str,
    /// `system:serviceaccount:NAMESPACE:NAME`
    account: String,
    reviews: Semaphore,
    known: Remembered<Digest, Result<Claims, Denied>>,
    secrets: [RandomState; 2],
}

/// In place of the token, which nothing should be able to read from our memory later. 128 bits under keys that nobody
/// outside knows, so that nobody can aim for another's.
type Digest = [u64; 2];

impl<R: Review> Tokens<R> {
    /// `account`: the agent's full user name.
    pub fn new(review: R, audience: &'static str, account: String) -> Self {
        Self {
            review,
            audience,
            account,
            reviews: Semaphore::new(REVIEWS),
            known: Remembered::new(BELIEVED, ANSWERS),
            secrets: [RandomState::new(), RandomState::new()],
        }
    }

    /// By the token's word, where it has one on its node: then its pod may have gone within [`BELIEVED`].
    pub async fn agent(&self, token: &str) -> Result<Own, Denied> {
        match self.claims(token).await? {
            Claims { node: Some(node), node_uid: Some(node_uid), .. } => Ok(Own { node, node_uid }),
            claims => self.look(&claims).await,
        }
    }

    /// By what is there now.
    pub async fn agent_now(&self, token: &str) -> Result<Own, Denied> {
        let claims = self.claims(token).await?;
        self.look(&claims).await
    }

    async fn look(&self, claims: &Claims) -> Result<Own, Denied> {
        let found = match &claims.pod {
            Some(pod) => in_time(self.review.find(pod)).await?,
            None => Found::default(),
        };
        Ok(broker::own_node(claims, &found)?)
    }

    async fn claims(&self, token: &str) -> Result<Claims, Denied> {
        let digest = self.secrets.each_ref().map(|secret| secret.hash_one(token));
        if let Some(answer) = self.known.recall(&digest) {
            return answer;
        }
        let status = {
            let _turn = self.reviews.acquire().await.expect("never closed");
            in_time(self.review.review(token, self.audience)).await?
        };
        let answer = claims(status, &self.account, self.audience);
        self.known.remember(digest, answer.clone());
        answer
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, String>>) -> Result<T, Denied> {
    match timeout(REVIEW_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(Denied::Unavailable),
        Err(_) => Err(Denied::Unavailable("no reply".into())),
    }
}

fn claims(status: TokenReviewStatus, account: &str, audience: &str) -> Result<Claims, Denied> {
    let for_us = status.audiences.iter().flatten().any(|it| it == audience);
    if status.authenticated != Some(true) || !for_us {
        let error = status.error.unwrap_or_else(|| format!("expected audience {audience}"));
        return Err(Denied::Unauthenticated(error));
    }
    let user = status.user.unwrap_or_default();
    if user.username.as_deref() != Some(account) {
        return Err(Denied::NotAgent(user.username.unwrap_or_default()));
    }
    Ok(Claims {
        pod: claim(&user, POD_NAME_CLAIM),
        pod_uid: claim(&user, POD_UID_CLAIM),
        node: claim(&user, NODE_NAME_CLAIM),
        node_uid: claim(&user, NODE_UID_CLAIM),
    })
}

/// What a token says of its bearer. One value each; several would be nobody's claims.
pub(crate) fn claim(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
