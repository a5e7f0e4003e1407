//! Keeps once what many have in common: 150 000 pods come from some hundred templates.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Each of what is shared, and by how many.
#[derive(Clone, Debug)]
pub(crate) struct Interner<T: ?Sized>(HashMap<Arc<T>, usize>);

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash + ?Sized> Interner<T> {
    /// The one that is equal, for one more to share. To be given back with [`Self::release`].
    pub(crate) fn share(&mut self, value: Arc<T>) -> Arc<T> {
        let value = self.0.get_key_value(&value).map_or(value, |(known, _)| known.clone());
        *self.0.entry(value.clone()).or_default() += 1;
        value
    }

    pub(crate) fn release(&mut self, value: &T) {
        if let Some(count) = self.0.get_mut(value) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(value);
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.keys()
    }

    /// How many share something.
    #[cfg(test)]
    pub(crate) fn sharers(&self) -> usize {
        self.0.values().sum()
    }
}
