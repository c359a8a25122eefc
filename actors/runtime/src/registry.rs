use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use expediter_core::partition::Directory;
use expediter_ports::{DecisionSubject, Registered, RegistrySink};
use expediter_types::{Hold, LimitScope, Merchant, MerchantId, Scope};
use tokio::sync::watch;

type Listener = Box<dyn Fn(News<'_>) + Send + Sync>;
type ScopeListener = Box<dyn Fn(LimitScope, &str, Option<Arc<Scope>>) + Send + Sync>;

/// What the partitions have to hear.
#[derive(Debug, Clone, Copy)]
pub(crate) enum News<'a> {
    Merchant(&'a MerchantId, Change),
    /// Operators decided something about merchants or groups.
    Holds,
}

/// What happened to a merchant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Manifest,
    Resume,
}

#[derive(Debug, Default)]
struct Holds {
    merchants: HashMap<MerchantId, Hold>,
    groups: HashMap<String, Hold>,
}

/// Every registered merchant, shared by all partitions of the process.
pub struct MerchantDirectory {
    merchants: RwLock<HashMap<MerchantId, Registered>>,
    scopes: RwLock<HashMap<(LimitScope, String), Arc<Scope>>>,
    loaded: watch::Sender<bool>,
    holds: RwLock<Holds>,
    /// Whether there is any hold: spares a look for each order.
    any_hold: AtomicBool,
    /// Revision of the newest decision that is known here.
    decided: AtomicU64,
    decisions_loaded: watch::Sender<bool>,
    listener: Mutex<Option<Listener>>,
    scope_listeners: Mutex<Vec<ScopeListener>>,
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
            scopes: RwLock::default(),
            loaded: watch::Sender::new(false),
            holds: RwLock::default(),
            any_hold: AtomicBool::new(false),
            decided: AtomicU64::new(0),
            decisions_loaded: watch::Sender::new(false),
            listener: Mutex::new(None),
            scope_listeners: Mutex::default(),
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

    /// All that was registered and decided at the start is here.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        *self.loaded.borrow() && *self.decisions_loaded.borrow()
    }

    /// Revision of the newest decision of an operator that is in force here; 0 before the first.
    #[must_use]
    pub fn decided(&self) -> u64 {
        self.decided.load(Ordering::Acquire)
    }

    /// Waits until it is loaded.
    pub(crate) async fn wait_loaded(&self) {
        for part in [&self.loaded, &self.decisions_loaded] {
            // The sender lives as long as the directory.
            let _ended = part.subscribe().wait_for(|loaded| *loaded).await.is_ok();
        }
    }

    pub(crate) fn listen(&self, listener: Listener) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }

    /// The limits of a group or credential; `None` when it has none.
    #[must_use]
    pub fn scope(&self, kind: LimitScope, id: &str) -> Option<Arc<Scope>> {
        let scopes = self.scopes.read().unwrap_or_else(PoisonError::into_inner);
        scopes.get(&(kind, id.to_owned())).cloned()
    }

    /// All limits of groups and credentials, in no order.
    #[must_use]
    pub fn scopes(&self) -> Vec<Arc<Scope>> {
        let scopes = self.scopes.read().unwrap_or_else(PoisonError::into_inner);
        scopes.values().cloned().collect()
    }

    /// Calls `listener` for each change of a group's or credential's limits from now on, after
    /// [`MerchantDirectory::scope`] has it; `None`: deleted. It runs on the follower's task and must
    /// not block.
    pub fn listen_scopes(
        &self,
        listener: impl Fn(LimitScope, &str, Option<Arc<Scope>>) + Send + Sync + 'static,
    ) {
        let listeners = self.scope_listeners.lock();
        let mut listeners = listeners.unwrap_or_else(PoisonError::into_inner);
        listeners.push(Box::new(listener));
    }

    fn tell_scope(&self, kind: LimitScope, id: &str, scope: Option<&Arc<Scope>>) {
        let listeners = self.scope_listeners.lock();
        for listener in listeners.unwrap_or_else(PoisonError::into_inner).iter() {
            listener(kind, id, scope.cloned());
        }
    }

    fn tell(&self, news: News<'_>) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = listener.as_ref() {
            listener(news);
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

    fn hold(&self, merchant: &Merchant) -> Option<Hold> {
        if !self.any_hold.load(Ordering::Acquire) {
            return None;
        }
        let holds = self.holds.read().unwrap_or_else(PoisonError::into_inner);
        let of_group = || holds.groups.get(&merchant.group);
        holds.merchants.get(&merchant.id).or_else(of_group).cloned()
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
        self.tell(News::Merchant(&id, Change::Manifest));
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
            self.tell(News::Merchant(merchant, Change::Manifest));
        }
    }

    fn put_scope(&self, scope: Arc<Scope>) {
        let key = (scope.kind, scope.id.clone());
        let before = {
            let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
            scopes.insert(key, scope.clone())
        };
        if before.as_ref() != Some(&scope) {
            self.tell_scope(scope.kind, &scope.id, Some(&scope));
        }
    }

    fn remove_scope(&self, kind: LimitScope, id: &str) {
        let gone = {
            let mut scopes = self.scopes.write().unwrap_or_else(PoisonError::into_inner);
            scopes.remove(&(kind, id.to_owned())).is_some()
        };
        if gone {
            self.tell_scope(kind, id, None);
        }
    }

    fn loaded(&self) {
        self.loaded.send_replace(true);
    }

    fn decided(&self, subject: DecisionSubject, hold: Option<Hold>, revision: u64) {
        {
            let mut holds = self.holds.write().unwrap_or_else(PoisonError::into_inner);
            match (subject, hold) {
                (DecisionSubject::Merchant(id), Some(hold)) => {
                    holds.merchants.insert(id, hold);
                }
                (DecisionSubject::Merchant(id), None) => drop(holds.merchants.remove(&id)),
                (DecisionSubject::Group(group), Some(hold)) => {
                    holds.groups.insert(group, hold);
                }
                (DecisionSubject::Group(group), None) => drop(holds.groups.remove(&group)),
            }
            let any = !holds.merchants.is_empty() || !holds.groups.is_empty();
            self.any_hold.store(any, Ordering::Release);
        }
        self.decided.fetch_max(revision, Ordering::AcqRel);
        if *self.decisions_loaded.borrow() {
            self.tell(News::Holds);
        }
    }

    fn decisions_renumbered(&self) {
        // Else a new decision would count as followed before it is.
        self.decided.store(0, Ordering::Release);
    }

    fn decisions_loaded(&self) {
        self.decisions_loaded.send_replace(true);
        self.tell(News::Holds);
    }

    fn resume(&self, merchant: &MerchantId) {
        self.tell(News::Merchant(merchant, Change::Resume));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_there_before_their_change_is_told() {
        let directory = MerchantDirectory::new();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (seen, list) = (Arc::downgrade(&directory), told.clone());
        directory.listen_scopes(move |kind, id, scope| {
            let there = seen.upgrade().unwrap().scope(kind, id);
            assert_eq!(there, scope);
            list.lock()
                .unwrap()
                .push((id.to_owned(), scope.map(|s| s.burst)));
        });
        let scope = |burst| {
            Arc::new(Scope {
                kind: LimitScope::Group,
                id: "pizza".to_owned(),
                rates: Vec::new(),
                burst,
                concurrency: Some(1),
            })
        };
        directory.put_scope(scope(1));
        directory.put_scope(scope(1));
        directory.put_scope(scope(2));
        directory.remove_scope(LimitScope::Credential, "pizza");
        directory.remove_scope(LimitScope::Group, "pizza");
        let pizza = || "pizza".to_owned();
        assert_eq!(
            *told.lock().unwrap(),
            [(pizza(), Some(1)), (pizza(), Some(2)), (pizza(), None)]
        );
        assert!(directory.scopes().is_empty());
    }
}
