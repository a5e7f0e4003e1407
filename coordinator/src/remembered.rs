//! Answers that are believed for a while, and no more of them than there is room for.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) struct Remembered<K, V> {
    known: Mutex<HashMap<K, (Instant, V)>>,
    believed: Duration,
    room: usize,
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    pub(crate) fn new(believed: Duration, room: usize) -> Self {
        Self { known: Mutex::default(), believed, room }
    }

    pub(crate) fn recall(&self, key: &K) -> Option<V> {
        let known = self.known.lock().expect("nobody panics while holding it");
        known.get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, value)| value.clone())
    }

    pub(crate) fn remember(&self, key: K, value: V) {
        let now = Instant::now();
        let mut known = self.known.lock().expect("nobody panics while holding it");
        if known.len() >= self.room {
            known.retain(|_, (until, _)| now < *until);
        }
        // Still full: somebody makes questions up. What is true will be asked again.
        if known.len() >= self.room {
            known.clear();
        }
        known.insert(key, (now + self.believed, value));
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known.lock().expect("nobody panics while holding it").len()
    }
}
