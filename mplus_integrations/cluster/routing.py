"""Ray Serve's choice of a replica: always the owner of the memory that a request means."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# Ray is checked where it is installed.

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from mplus_integrations.cluster.owners import owner


class OwnerRouter(RequestRouter):
    """Sends a request that names a memory (as its multiplexed model id) to the memory's owner and to no other.

    Without a name the replica with the fewest requests is taken. An owner with all places taken is waited for: another
    replica would have to open the memory first, and then wait for the owner's lock.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The owner alone, or all."""
        if not candidate_replicas:
            return []
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        metadata: Any = pending_request.metadata
        memory: str = metadata.multiplexed_model_id
        if not memory:
            return [candidate_replicas]
        living = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[living[owner(memory, living)]]]
