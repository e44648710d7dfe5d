"""Base and adapters to one model: written shard by shard, and compared with what it was made of."""
