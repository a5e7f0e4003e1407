use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use super::*;

const ACCOUNT: &str = "system:serviceaccount:ebb:ebb-agent";
const AUDIENCE: &str = "ebb-coordinator";

fn status(change: impl Fn(&mut serde_json::Value)) -> TokenReviewStatus {
    let mut status = json!({"authenticated": true, "audiences": [AUDIENCE], "user": {"username": ACCOUNT, "extra": {
        POD_NAME_CLAIM: ["agent"], POD_UID_CLAIM: ["p-uid"], NODE_NAME_CLAIM: ["n"], NODE_UID_CLAIM: ["n-uid"]}}});
    change(&mut status);
    serde_json::from_value(status).unwrap()
}

#[test]
fn only_a_token_of_the_agent_for_us_is_taken() {
    let check = |change: &dyn Fn(&mut serde_json::Value), expected| {
        assert_eq!(claims(status(change), ACCOUNT, AUDIENCE), expected);
    };
    let text = |text: &str| Some(text.to_owned());
    let all = || Claims { pod: text("agent"), pod_uid: text("p-uid"), node: text("n"), node_uid: text("n-uid") };
    check(&|_| {}, Ok(all()));
    let wrong_audience = || Err(Denied::Unauthenticated("expected audience ebb-coordinator".into()));
    check(&|status| status["authenticated"] = false.into(), wrong_audience());
    check(&|status| status["audiences"] = json!(["https://kubernetes"]), wrong_audience());
    check(&|status| status["audiences"] = json!(null), wrong_audience());
    check(&|status| *status = json!({"error": "expired"}), Err(Denied::Unauthenticated("expired".into())));
    let other = "system:serviceaccount:ebb:default";
    check(&|status| status["user"]["username"] = other.into(), Err(Denied::NotAgent(other.into())));
    check(&|status| status["user"]["extra"] = json!(null), Ok(Claims::default()));
    check(&|status| status["user"]["extra"][NODE_UID_CLAIM] = json!([""]), Ok(Claims { node_uid: None, ..all() }));
    check(&|status| status["user"]["extra"][POD_NAME_CLAIM] = json!(["a", "b"]), Ok(Claims { pod: None, ..all() }));
}

/// Stands in for the API server: `down` cannot be asked about, `old` is of a cluster that knows no nodes of tokens.
#[derive(Default)]
struct Fake {
    reviews: AtomicUsize,
    finds: AtomicUsize,
    /// The agent's pod is gone.
    gone: AtomicBool,
}

impl Review for Fake {
    async fn review(&self, token: &str, _: &str) -> Result<TokenReviewStatus, String> {
        self.reviews.fetch_add(1, Ordering::Relaxed);
        match token {
            "down" => Err("no route".into()),
            "old" => Ok(status(|status| {
                status["user"]["extra"] = json!({POD_NAME_CLAIM: ["agent"], POD_UID_CLAIM: ["p-uid"]});
            })),
            _ => Ok(status(|_| {})),
        }
    }

    async fn find(&self, pod: &str) -> Result<Found, String> {
        self.finds.fetch_add(1, Ordering::Relaxed);
        assert_eq!(pod, "agent");
        let made = |second| Some(time::Instant::from_millis(second));
        Ok(Found {
            pod_uid: (!self.gone.load(Ordering::Relaxed)).then(|| "p-uid".into()),
            pod_made: made(2),
            node: Some("n".into()),
            node_uid: Some("n-uid".into()),
            node_made: made(1),
        })
    }
}

fn tokens() -> Tokens<Fake> {
    Tokens::new(Fake::default(), AUDIENCE, ACCOUNT.into())
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_believed_for_a_while_and_a_failure_not_at_all() {
    let tokens = tokens();
    let asked = || tokens.review.reviews.load(Ordering::Relaxed);
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
async fn the_pod_is_looked_up_where_it_must_be_there_now_and_where_the_token_names_no_node() {
    let tokens = tokens();
    let own = Own { node: "n".into(), node_uid: "n-uid".into() };
    let looked = || tokens.review.finds.load(Ordering::Relaxed);
    assert_eq!((tokens.agent("a").await, looked()), (Ok(own.clone()), 0));
    assert_eq!((tokens.agent("old").await, looked()), (Ok(own.clone()), 1));
    for round in 2..=3 {
        assert_eq!((tokens.agent_now("a").await, looked()), (Ok(own.clone()), round));
    }
    tokens.review.gone.store(true, Ordering::Relaxed);
    let gone = Err(Denied::Refused(broker::Refusal::PodGone("agent".into())));
    assert_eq!(tokens.agent_now("a").await, gone);
    assert_eq!(tokens.agent("old").await, gone);
}

#[tokio::test]
async fn made_up_tokens_do_not_fill_the_memory() {
    let tokens = tokens();
    for number in 0..=ANSWERS {
        tokens.agent(&number.to_string()).await.unwrap();
    }
    assert!(tokens.known.len() <= ANSWERS);
}
