use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use expediter_core::partition::Directory;
use expediter_ports::{Registered, RegistrySink};
use expediter_types::{Merchant, MerchantId};
use tokio::sync::watch;

type Listener = Box<dyn Fn(&MerchantId, Change) + Send + Sync>;

/// What happened to a merchant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Manifest,
    Resume,
}

/// Every registered merchant, shared by all partitions of the process.
pub struct MerchantDirectory {
    merchants: RwLock<HashMap<MerchantId, Registered>>,
    loaded: watch::Sender<bool>,
    listener: Mutex<Option<Listener>>,
}

impl std::fmt::Debug for MerchantDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MerchantDirectory")
            .field("merchants", &self.len())
            .finish_non_exhaustive()
    }
}

impl Default for MerchantDirectory {
    fn default() -> Self {
        Self {
            merchants: RwLock::default(),
            loaded: watch::Sender::new(false),
            listener: Mutex::new(None),
        }
    }
}

impl MerchantDirectory {
    /// An empty directory that is not loaded yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How many merchants are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.merchants
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// None is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that was registered at the start is here.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        *self.loaded.borrow()
    }

    /// Waits until it is loaded.
    pub(crate) async fn wait_loaded(&self) {
        // The sender lives as long as the directory.
        let _ended = self
            .loaded
            .subscribe()
            .wait_for(|loaded| *loaded)
            .await
            .is_ok();
    }

    pub(crate) fn listen(&self, listener: Listener) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }

    fn tell(&self, merchant: &MerchantId, change: Change) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listener.as_ref() {
            listener(merchant, change);
        }
    }
}

impl Directory for MerchantDirectory {
    fn merchant(&self, id: &MerchantId) -> Option<Arc<Merchant>> {
        let merchants = self
            .merchants
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        merchants.get(id).map(|entry| Arc::clone(&entry.merchant))
    }
}

impl RegistrySink for MerchantDirectory {
    fn put(&self, entry: Registered) {
        let id = entry.merchant.id.clone();
        {
            let mut merchants = self
                .merchants
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let unchanged = merchants
                .get(&id)
                .is_some_and(|old| old.revision == entry.revision);
            if unchanged {
                return;
            }
            merchants.insert(id.clone(), entry);
        }
        self.tell(&id, Change::Manifest);
    }

    fn remove(&self, merchant: &MerchantId) {
        let gone = {
            let mut merchants = self
                .merchants
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            merchants.remove(merchant).is_some()
        };
        if gone {
            self.tell(merchant, Change::Manifest);
        }
    }

    fn loaded(&self) {
        self.loaded.send_replace(true);
    }

    fn resume(&self, merchant: &MerchantId) {
        self.tell(merchant, Change::Resume);
    }
}
