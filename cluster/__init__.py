"""Where do studies run when the laptop is too small? Rented nodes, as one Ray cluster.

prime/        Prime Intellect: offers, pods, money

names         whose a node is, as its name says
ledger        what this machine knows of the nodes beyond that
keys          the cluster's own SSH key and token
launch        the cluster's file: checked, and with what Ray's launcher needs beyond it
network       by which addresses nodes reach each other, and on which ports
nodes         Ray's questions about nodes, whoever rents them out
wireguard     the overlay, where not all ports are open
static        nodes of a list
options       the ssh command line that reaches one node and no other
ssh           the same for Ray's launcher

command       the verbs of `isoflop cluster`
file          the cluster's file and its nodes, for the verbs
remote        shells, files and tunnels
jobs          studies, as Ray jobs on the head
connectivity  the all-reduce before a study may start
backup        the record of runs, beyond the head
wheels        the flash-attn that fits a node
"""
