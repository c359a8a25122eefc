mod architecture;
mod crash;
mod flow;
mod probes;
