//! What a caller may see: narrows its filter to the products and labels of its line in the credentials file.
//!
//! Every event that a client reads has passed a filter that was made here.

use tonic::Status;

use super::{access::Caller, errors};
use crate::{
    credentials::Products,
    event::{Filter, Product},
};

impl Caller {
    /// Narrows a filter to the products and labels of the caller. A filter that names other products is refused.
    pub(super) fn narrow_filter(&self, mut filter: Filter) -> Result<Filter, Status> {
        let Some(client) = &self.0 else {
            return Ok(filter);
        };
        if let Products::Only(products) = &client.products {
            if let Some(denied) = filter
                .products
                .iter()
                .filter(|product| !products.contains(*product))
                .min()
            {
                return Err(errors::product_denied(denied.as_str()));
            }

            // An empty set of products would restrict nothing.
            if products.is_empty() {
                return Err(errors::no_products());
            }
            if filter.products.is_empty() {
                filter.products.clone_from(products);
            }
        }

        filter.bound.clone_from(&client.labels);
        Ok(filter)
    }

    /// Whether the caller may see a product's events, as far as their labels allow.
    pub(super) fn may_see_product(&self, product: &Product) -> bool {
        self.0
            .as_ref()
            .is_none_or(|client| client.products.allow(product.as_str()))
    }
}
