"""Prime Intellect: who pays, what is for rent, what is rented, what may it cost?

account   the key, the team and the address
records   offers, pods and bills as the API gives them
errors    what its refusals mean
api       the requests
offers    which offers fit a wish, and which comes first
money     prices, bills and hard limits
fleet     the nodes of one cluster, bought and ended safely
quote     what a start will cost, and the SSH key at the API
provider  Ray's provider of nodes, over the fleet
watch     on the head: ends the cluster at its limits
tables    offers, status and bills as text
sweep     what a crash left behind
fake      the same API on this machine, for rehearsals and tests
"""
