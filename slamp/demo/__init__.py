"""The demonstration: real data, a Norse network, and the whole path from training to verdict."""
