//! What the platform asks of the outside, as traits. No vendor is named here.

mod courier;
#[cfg(feature = "fakes")]
pub mod fakes;
mod log;
mod panic;
mod registry;
mod slices;
mod store;

pub use courier::{AttemptRequest, Courier, MayLeave};
pub use log::{
    IntakeBatch, IntakeClosed, IntakeSource, LogMessage, LogState, Opened, PartitionHost,
    PartitionIntake, PartitionLog, PublishFailure, Purge, StartPartition, Stop, Stopped,
    Undecodable,
};
pub use panic::panic_text;
pub use registry::{DecisionSubject, Registered, RegistrySink};
pub use slices::{SharedLimit, SharedLimits, SliceWant};
pub use store::{MerchantStore, StoreError, StoreUsage, looked_at};

/// A boxed future that can be sent to any thread.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
