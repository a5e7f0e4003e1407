//! Which node an agent's token is bound to. The API server says so; we only look.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Mutex;
use std::time::Duration;

use ebb_core::admission::{NODE_NAME_CLAIM as NODE_NAME, NODE_UID_CLAIM as NODE_UID};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// How long an answer is believed. Short enough for a deleted pod's token to be worth little, and long enough for an
/// agent that connects again and again not to reach the API server each time.
const BELIEVED: Duration = Duration::from_secs(60);
/// Answers kept: more than a cluster has nodes (Kubernetes: 5000).
const ANSWERS: usize = 8192;
/// Questions asked of the API server at once, for when all agents come back after a restart of ours.
const REVIEWS: usize = 16;
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// The node that an agent speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub node: String,
    pub node_uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the token is not accepted: {0}")]
    Unauthenticated(String),
    #[error("the token is of {0}, which is not the agent")]
    NotAgent(String),
    #[error("the token is not bound to a node (needs Kubernetes 1.30)")]
    NotBound,
    #[error("the token cannot be reviewed now: {0}")]
    Unavailable(String),
}

/// Asks about a token: the API server, or a test.
pub trait Review: Send + Sync + 'static {
    fn review(&self, token: &str) -> impl Future<Output = Result<TokenReviewStatus, String>> + Send;
}

pub struct ClusterReview(pub Client);

impl Review for ClusterReview {
    async fn review(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let spec = TokenReviewSpec { audiences: Some(vec![ebb_proto::TOKEN_AUDIENCE.into()]), token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api = Api::<TokenReview>::all(self.0.clone());
        let review = api.create(&PostParams::default(), &review).await.map_err(|error| error.to_string())?;
        Ok(review.status.unwrap_or_default())
    }
}

/// Answers about tokens, remembered for a while.
pub struct Tokens<R> {
    review: R,
    /// `system:serviceaccount:NAMESPACE:NAME`
    account: String,
    reviews: Semaphore,
    known: Mutex<HashMap<Digest, Answer>>,
    secrets: [RandomState; 2],
}

/// In place of the token, which nothing should be able to read from our memory later. 128 bits under keys that nobody
/// outside knows, so that nobody can aim for another's.
type Digest = [u64; 2];

struct Answer {
    until: Instant,
    agent: Result<Agent, Denied>,
}

impl<R: Review> Tokens<R> {
    pub fn new(review: R, namespace: &str, service_account: &str) -> Self {
        Self {
            review,
            account: format!("system:serviceaccount:{namespace}:{service_account}"),
            reviews: Semaphore::new(REVIEWS),
            known: Mutex::default(),
            secrets: [RandomState::new(), RandomState::new()],
        }
    }

    pub async fn agent(&self, token: &str) -> Result<Agent, Denied> {
        let digest = self.secrets.each_ref().map(|secret| secret.hash_one(token));
        if let Some(answer) = self.recall(digest) {
            return answer;
        }
        let review = async {
            let _turn = self.reviews.acquire().await.expect("never closed");
            timeout(REVIEW_TIMEOUT, self.review.review(token)).await
        };
        let status = match review.await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Err(Denied::Unavailable(error)),
            Err(_) => return Err(Denied::Unavailable("no reply".into())),
        };
        let answer = agent(status, &self.account);
        self.remember(digest, answer.clone());
        answer
    }

    fn recall(&self, digest: Digest) -> Option<Result<Agent, Denied>> {
        let known = self.known.lock().expect("nobody panics while holding it");
        known.get(&digest).filter(|answer| Instant::now() < answer.until).map(|answer| answer.agent.clone())
    }

    fn remember(&self, digest: Digest, agent: Result<Agent, Denied>) {
        let now = Instant::now();
        let mut known = self.known.lock().expect("nobody panics while holding it");
        if known.len() >= ANSWERS {
            known.retain(|_, answer| now < answer.until);
        }
        // Still full: somebody makes up tokens. What is true will be asked again.
        if known.len() >= ANSWERS {
            known.clear();
        }
        known.insert(digest, Answer { until: now + BELIEVED, agent });
    }
}

fn agent(status: TokenReviewStatus, account: &str) -> Result<Agent, Denied> {
    let for_us = status.audiences.iter().flatten().any(|audience| audience == ebb_proto::TOKEN_AUDIENCE);
    if status.authenticated != Some(true) || !for_us {
        let error = status.error.unwrap_or_else(|| format!("expected audience {}", ebb_proto::TOKEN_AUDIENCE));
        return Err(Denied::Unauthenticated(error));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if name != account {
        return Err(Denied::NotAgent(name));
    }
    let mut extra = user.extra.unwrap_or_default();
    let mut one = |key| extra.remove(key).and_then(|mut values| values.pop()).filter(|value| !value.is_empty());
    match (one(NODE_NAME), one(NODE_UID)) {
        (Some(node), Some(node_uid)) => Ok(Agent { node, node_uid }),
        _ => Err(Denied::NotBound),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:ebb:ebb-agent";

    fn status(change: impl Fn(&mut serde_json::Value)) -> TokenReviewStatus {
        let mut status = json!({"authenticated": true, "audiences": ["ebb-coordinator"], "user": {
            "username": ACCOUNT, "extra": {NODE_NAME: ["n"], NODE_UID: ["u"]}}});
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn only_a_bound_token_of_the_agent_for_us_is_taken() {
        let check =
            |change: &dyn Fn(&mut serde_json::Value), expected| assert_eq!(agent(status(change), ACCOUNT), expected);
        check(&|_| {}, Ok(Agent { node: "n".into(), node_uid: "u".into() }));
        let wrong_audience = || Err(Denied::Unauthenticated("expected audience ebb-coordinator".into()));
        check(&|status| status["authenticated"] = false.into(), wrong_audience());
        check(&|status| status["audiences"] = json!(["https://kubernetes"]), wrong_audience());
        check(&|status| status["audiences"] = json!(null), wrong_audience());
        check(&|status| *status = json!({"error": "expired"}), Err(Denied::Unauthenticated("expired".into())));
        let other = "system:serviceaccount:ebb:default";
        check(&|status| status["user"]["username"] = other.into(), Err(Denied::NotAgent(other.into())));
        check(&|status| status["user"]["extra"] = json!({NODE_NAME: ["n"]}), Err(Denied::NotBound));
        check(&|status| status["user"]["extra"][NODE_UID] = json!([""]), Err(Denied::NotBound));
    }

    struct Counting(AtomicUsize);

    impl Review for Counting {
        async fn review(&self, token: &str) -> Result<TokenReviewStatus, String> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if token == "down" { Err("no route".into()) } else { Ok(status(|_| {})) }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_believed_for_a_while_and_a_failure_not_at_all() {
        let tokens = Tokens::new(Counting(AtomicUsize::new(0)), "ebb", "ebb-agent");
        let asked = || tokens.review.0.load(Ordering::Relaxed);
        tokens.agent("a").await.unwrap();
        tokens.agent("a").await.unwrap();
        assert_eq!(asked(), 1);
        tokens.agent("b").await.unwrap();
        assert_eq!(asked(), 2);
        tokio::time::advance(BELIEVED).await;
        tokens.agent("a").await.unwrap();
        assert_eq!(asked(), 3);
        for _ in 0..2 {
            assert_eq!(tokens.agent("down").await, Err(Denied::Unavailable("no route".into())));
        }
        assert_eq!(asked(), 5);
    }

    #[tokio::test]
    async fn made_up_tokens_do_not_fill_the_memory() {
        let tokens = Tokens::new(Counting(AtomicUsize::new(0)), "ebb", "ebb-agent");
        for number in 0..=ANSWERS {
            tokens.agent(&number.to_string()).await.unwrap();
        }
        assert!(tokens.known.lock().unwrap().len() <= ANSWERS);
    }
}
