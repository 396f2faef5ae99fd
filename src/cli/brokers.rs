//! Calls of the admin service at each of several brokers: what each node of a cluster has for itself, such as its streams.

use tonic::Status;

use super::{
    client::{Connection, GrpcArgs, error_of_all},
    problem::Refusal,
};
use crate::wire::v1::admin_service_client::AdminServiceClient;

/// One of the brokers.
pub(super) struct Broker {
    grpc: GrpcArgs,
    pub(super) client: AdminServiceClient<Connection>,
}

impl Broker {
    pub(super) fn each(grpc: &GrpcArgs) -> anyhow::Result<Vec<Self>> {
        let broker = |grpc: GrpcArgs| grpc.admin().map(|client| Self { grpc, client });
        grpc.each().into_iter().map(broker).collect()
    }

    pub(super) fn refusal(&self, status: Status) -> Refusal {
        let url = self.grpc.broker();
        Refusal { url, status }
    }
}

/// The error if brokers did not say what they have.
pub(super) fn complete(grpc: &GrpcArgs, away: &[Refusal]) -> anyhow::Result<()> {
    stop_if_only(grpc, away)?;
    if away.is_empty() {
        return Ok(());
    }
    Err(error_of_all("not every broker has answered", away))
}

/// The error if the only broker did not answer: there is nothing to go on with.
pub(super) fn stop_if_only(grpc: &GrpcArgs, away: &[Refusal]) -> anyhow::Result<()> {
    match away {
        [only] if !grpc.has_others() => Err(grpc.error(&only.status)),
        _ => Ok(()),
    }
}
