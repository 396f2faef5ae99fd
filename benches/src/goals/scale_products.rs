//! Ten thousand subscriptions to one product on a hundred connections: deliveries a second to all of them together.

use anyhow::Result;

use super::fan_out;
use crate::{
    bench::Bench,
    peers::blobcast::{self, BLOBCAST},
    report::{Better, Table},
    subscribers::Seats,
};

const CONNECTIONS: usize = 100;

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let per_connection = bench.either(100, 10);
    let title = format!("fan-out to {} subscriptions", CONNECTIONS * per_connection);
    let mut table = Table::new(title, "deliveries/s", Better::More);
    for round in bench.rounds("scale-products") {
        let front = blobcast::start(bench, &[]).await?;
        let seats = Seats::new(front.grpc, CONNECTIONS, per_connection);
        table.add(
            round.turn(BLOBCAST),
            fan_out::of_seats(bench, &front, seats).await?,
        );
    }
    Ok(vec![table])
}
