//! What a model in the batch lane needs of a run: its store, where batches are remembered, and a way to ask again online
//! what came in a wrong form, if the policy permits that lane as well. A preview has no plan, and does not wait for a day.

use std::sync::Arc;

use rowmill_jobs::lane::{Lane, LaneChoice};
use rowmill_jobs::spec::EngineSpec;
use rowmill_jobs::{Error, Result};
use rowmill_managed::policy::Permit;
use rowmill_managed::{BatchesOfRun, Books, ManagedEngine};

use super::{Egress, Means, Sending};

impl Egress {
    /// The engine with what the batch lane needs.
    pub(super) async fn in_batches(
        &self,
        engine: ManagedEngine,
        run: Sending<'_>,
        model: &str,
        means: &Means<'_>,
    ) -> Result<ManagedEngine> {
        let Some((store, _)) = run.store.zip(run.plan) else {
            return Err(Error::invalid("a preview does not wait for batches, which take up to a day")
                .hint("write lane = 'online' for the preview, and lane = 'batch' again for the run"));
        };
        let online = self.again(run, model, means).await?;
        let (run_key, executor) = (run.run_key.to_owned(), self.executor.clone());
        engine.in_batches(&self.accounts, BatchesOfRun { store: Arc::clone(store), run_key, executor }, online)
    }

    /// What asks a model online beside another lane, if the policy permits that.
    pub(super) async fn again(
        &self,
        run: Sending<'_>,
        model: &str,
        means: &Means<'_>,
    ) -> Result<Option<Arc<ManagedEngine>>> {
        let Some(permit) = self.online_permit(run, model) else { return Ok(None) };
        // A name of its own in ledgers that both may have.
        let executor = format!("{}-again", means.books.executor);
        let means = Means { books: Books { executor: &executor, ..means.books }, ..*means };
        Ok(Some(Arc::new(self.calling(run, model, permit, &means).await?)))
    }

    /// The permit to send a model's rows online, if the policy gives one.
    pub(super) fn online_permit(&self, run: Sending<'_>, model: &str) -> Option<Permit> {
        self.permit_in(run, model, Lane::Online).ok()
    }

    /// The permit to send a model's rows in a lane. The job stays what it is but for that model's lane: what a model is asked
    /// depends on those that spill to it.
    ///
    /// # Errors
    /// As [`Egress::permits`].
    pub(super) fn permit_in(&self, run: Sending<'_>, model: &str, lane: Lane) -> Result<Permit> {
        let mut job = run.job.clone();
        for known in job.models.iter_mut().filter(|known| known.name == model) {
            if let EngineSpec::Managed { lane: choice, .. } = &mut known.engine {
                *choice = LaneChoice::Fixed(lane);
            }
        }
        let permit = self.permits(&job, run.calls)?.remove(model);
        permit.ok_or_else(|| Error::internal(format!("model {model} is not asked and has no permit")))
    }
}
