//! Tasks whose end is expected: `ExpectTasks`, `CancelExpectations`, and `ListExpectations` for administrators.

use tonic::{Request, Response, Status};

use super::{Context, errors};
use crate::wire::v1;

/// Expects tasks.
pub(super) async fn expect(
    context: &Context,
    request: Request<v1::ExpectTasksRequest>,
) -> Result<Response<v1::ExpectTasksResponse>, Status> {
    context.gate.caller_of(&request)?;
    Err(errors::reconcile_off())
}

/// Ends expectations.
pub(super) async fn cancel(
    context: &Context,
    request: Request<v1::CancelExpectationsRequest>,
) -> Result<Response<v1::CancelExpectationsResponse>, Status> {
    context.gate.caller_of(&request)?;
    Err(errors::reconcile_off())
}

/// One page of the expectations.
pub(super) fn list(
    _context: &Context,
    _request: v1::ListExpectationsRequest,
) -> Result<v1::ListExpectationsResponse, Status> {
    Err(errors::reconcile_off())
}
