//! The documents of EC2's instance metadata that tell of a node's end.

use std::time::Duration;

use ebb_core::notice::{Document, Notices};
use ebb_core::time::Instant;

use crate::text;

/// Whatever a document says: a refusal names it, a notice has its trigger, and reading it again later finds the same
/// notices under the same short, plain ids.
pub fn target(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let now = Instant::from_millis(1_795_489_200_123);
    for document in Document::ALL {
        match document.read(text, now) {
            Ok(notices) => {
                let later = document.read(text, now + Duration::from_secs(5)).expect("what is understood stays so");
                let mut known = Notices::default();
                assert!(known.learn(document.trigger(), Some(notices.clone())));
                assert!(!known.learn(document.trigger(), Some(later)), "{notices:?}");
                for notice in notices {
                    assert_eq!(notice.trigger, document.trigger());
                    assert!(notice.id.len() < 128 && notice.id.is_ascii() && !notice.id.contains(char::is_whitespace));
                    assert!(notice.reason.len() < 2000);
                }
            }
            Err(malformed) => {
                assert!(malformed.to_string().starts_with(&format!("understand {}: ", document.path())));
                assert!(!malformed.wrong.is_empty() && malformed.wrong.len() < 1000);
            }
        }
    }
}
