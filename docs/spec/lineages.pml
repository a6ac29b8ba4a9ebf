/* Two lineages of one run, made by an operator's `force-view` (or by resuming a checkpoint twice), for spin.
 *
 * PEERS are the members of view 0 of lineage 0. Each lineage decides one further view with the rule of agreement.pml.
 * An operator may at any moment tell some living peers to go on without the others: that makes a lineage id that
 * nobody has used, with a view whose members are these peers, decided by the operator's word. Peers hear of it one by
 * one, or never. Set by -D: PEERS (at most 4), CRASHES, FORCES (at most 2), and single weakenings:
 *   SAME_ID   the forced view stays in the lineage it was forced from, as its next view
 *   NO_FENCE  a peer that has moved still answers proposals of the lineage it left
 *   NO_SPLIT  last words tell only of the lineage a peer was in when it died; for others it counts as gone
 *   NO_MEMORY a peer that has moved follows a decision of the lineage it left
 */

#define BIT(p)       (1 << (p))
#define HAS(m, p)    (((m) >> (p)) & 1)
#define WITHIN(a, b) (((a) & ~(b)) == 0)
#define COUNT(m)     (HAS(m, 0) + HAS(m, 1) + HAS(m, 2) + HAS(m, 3))
#define LOWEST(m)    ((m) & (~(m) + 1))
#define WEIGHT(q, m) (2 * COUNT((q) & (m)) + ((COUNT(m) % 2 == 0 && ((q) & LOWEST(m))) -> 1 : 0))
#define QUORUM(q, g, m) (2 * WEIGHT((q) & ~(g), m) > WEIGHT((m) & ~(g), m))
#define NAME(p)      (65 + (p))
#if PEERS == 2
#define EVERYBODY    3
#elif PEERS == 3
#define EVERYBODY    7
#else
#define EVERYBODY    15
#endif
#define LINEAGES     (FORCES + 1)

/* A peer: the lineage it is in, the view it has installed there (0: the lineage's first, 1: the one decided after it),
 * and its vote on that decision. A peer that has left a lineage has no vote in it, and no words about it. */
byte lineage[PEERS];
byte view[PEERS];
byte promised[PEERS];
byte accepted[PEERS];
byte left[PEERS]; /* lineages that it has been in and left */
byte dead;
byte crashes;

/* A lineage: who its first view has, and its ballots: two in lineage 0, one in each other. */
#define BALLOTS 2
#define OPERATOR 9 /* a value that no ballot made */
byte lineages = 1;
byte members[LINEAGES] = { EVERYBODY };
#define AT(l, b) ((l) * BALLOTS + (b) - 1)
#define SLOTS (LINEAGES * BALLOTS)
byte reporters[SLOTS];
byte highest[SLOTS];
byte value[SLOTS];  /* the ballot in which the value was made; 0: none */
byte chosen[LINEAGES];
byte gone[SLOTS];
byte voters[SLOTS];

byte g, h, i, go;
hidden byte q, l;

#define ALIVE(p) (!HAS(dead, p))
#define MINE(l)  (lineage[_pid] == (l))
#ifdef NO_FENCE
#define SPEAKS(l) (MINE(l) || HAS(left[_pid], l))
#else
#define SPEAKS(l) MINE(l)
#endif
#define VOTES(l) (ALIVE(_pid) && SPEAKS(l) && (!MINE(l) || view[_pid] == 0) && HAS(members[l], _pid))

/* A peer that speaks for a lineage it left has forgotten its vote there. */
#define PROMISED(l) (MINE(l) -> promised[_pid] : 0)
#define ACCEPTED(l) (MINE(l) -> accepted[_pid] : 0)

/* Whose death counts in lineage l: who died in it, or before it came over to it (it has no vote there), but not who had
 * left it (its vote there is in no words), unless NO_SPLIT. */
#ifdef NO_SPLIT
#define GONE(p, l) HAS(dead, p)
#else
#define GONE(p, l) (HAS(dead, p) && !HAS(left[p], l))
#endif

#define ACTS(l) assert(!HAS(left[_pid], l)) /* a peer that has moved never acts under the old id */

inline decided(l, b) {
	if
	:: chosen[l] && chosen[l] != value[AT(l, b)] -> printf("  so the next view of lineage %d is decided AGAIN\n", l)
	:: else -> printf("  so the next view of lineage %d is decided\n", l)
	fi;
	assert(!chosen[l] || chosen[l] == value[AT(l, b)]);
	chosen[l] = value[AT(l, b)]
}

inline promise(l, b) {
	printf("  %c promises ballot %d in lineage %d\n", NAME(_pid), b, l);
	ACTS(l);
	reporters[AT(l, b)] = reporters[AT(l, b)] | BIT(_pid);
	highest[AT(l, b)] = (ACCEPTED(l) > highest[AT(l, b)] -> ACCEPTED(l) : highest[AT(l, b)]);
	if
	:: MINE(l) -> promised[_pid] = b
	:: else
	fi
}

inline accept(l, b) {
	printf("  %c accepts ballot %d in lineage %d\n", NAME(_pid), b, l);
	ACTS(l);
	if
	:: MINE(l) -> promised[_pid] = b; accepted[_pid] = b
	:: else
	fi;
	voters[AT(l, b)] = voters[AT(l, b)] | BIT(_pid);
	if
	:: QUORUM(voters[AT(l, b)], gone[AT(l, b)], members[l]) -> decided(l, b)
	:: else
	fi
}

inline propose(l, b) {
	i = 0;
	do
	:: i < PEERS && GONE(i, l) && HAS(members[l], i) -> g = g | BIT(i); i++
	:: i < PEERS -> i++
	:: i == PEERS -> break
	od;
	d_step {
		i = 0;
		h = highest[AT(l, b)]; go = QUORUM(reporters[AT(l, b)], g, members[l]); q = 0;
		do
		:: q < PEERS ->
			if
			:: HAS(g, q) && lineage[q] == l && view[q] == 0 ->
				go = go && promised[q] <= b;
				h = (accepted[q] > h -> accepted[q] : h)
			:: HAS(g, q) && lineage[q] == l && view[q] > 0 -> go = 0
			:: else
			fi;
			q++
		:: else -> break
		od;
		if
		:: go && h -> value[AT(l, b)] = value[AT(l, h)]
		:: go && !h -> value[AT(l, b)] = b
		:: else
		fi;
		if
		:: go -> gone[AT(l, b)] = g; reporters[AT(l, b)] = 0; highest[AT(l, b)] = 0; printf("  %c proposes in it, with %d gone\n", NAME(_pid), g)
		:: else
		fi;
		g = 0; h = 0; go = 0; q = 0
	}
}

inline enter(l) { /* its state is the forced view, and nothing else any more */
	printf("  %c goes over to lineage %d\n", NAME(_pid), l);
	left[_pid] = left[_pid] | BIT(lineage[_pid]);
	lineage[_pid] = l; view[_pid] = 0; promised[_pid] = 0; accepted[_pid] = 0
}

/* The operator of _pid goes on with any living peers that include it. */
inline force() {
	g = BIT(_pid);
	i = 0;
	do
	:: i < PEERS && i != _pid && ALIVE(i) -> g = g | BIT(i); i++
	:: i < PEERS -> i++
	:: i == PEERS -> break
	od;
	d_step {
		i = 0;
#ifdef SAME_ID
		l = lineage[_pid];
		printf("  the operator of %c forces members %d\n", NAME(_pid), g);
		if
		:: chosen[l] -> printf("  so the next view of lineage %d is decided AGAIN\n", l)
		:: else
		fi;
		assert(!chosen[l]);
		chosen[l] = OPERATOR;
		lineages++;
#else
		printf("  the operator of %c forces members %d as lineage %d\n", NAME(_pid), g, lineages);
		members[lineages] = g;
		enter(lineages);
		lineages++;
#endif
		g = 0; l = 0
	}
}

#define IN_BALLOT(l, b) \
	:: d_step { VOTES(l) && PROMISED(l) < b && !HAS(reporters[AT(l, b)], _pid) && !value[AT(l, b)] -> promise(l, b) } \
	:: atomic { VOTES(l) && !value[AT(l, b)] && HAS(reporters[AT(l, b)], _pid) -> propose(l, b) } \
	:: d_step { VOTES(l) && value[AT(l, b)] && PROMISED(l) <= b && !HAS(voters[AT(l, b)], _pid) -> accept(l, b) }

/* A decision reaches members, and those whom it makes members. */
#ifdef NO_MEMORY
#define FOLLOWS(l) (MINE(l) || HAS(left[_pid], l))
#else
#define FOLLOWS(l) MINE(l)
#endif
#define INSTALL(l) \
	:: d_step { ALIVE(_pid) && chosen[l] && FOLLOWS(l) && (view[_pid] == 0 || !MINE(l)) -> \
		printf("  %c installs the next view of lineage %d\n", NAME(_pid), l); ACTS(l); \
		view[_pid] = 1; promised[_pid] = 0; accepted[_pid] = 0 }

#define ENTER(l) \
	:: d_step { ALIVE(_pid) && l < lineages && lineage[_pid] != l && !HAS(left[_pid], l) && HAS(members[l], _pid) -> enter(l) }

active [PEERS] proctype peer() {
	do
	IN_BALLOT(0, 1)
	IN_BALLOT(0, 2)
	INSTALL(0)
#ifndef SAME_ID
	IN_BALLOT(1, 1)
	INSTALL(1)
	ENTER(1)
#if FORCES > 1
	IN_BALLOT(2, 1)
	INSTALL(2)
	ENTER(2)
#endif
#endif
	:: atomic { ALIVE(_pid) && lineages < LINEAGES -> force() }
	:: d_step { ALIVE(_pid) && crashes < CRASHES -> printf("  %c dies\n", NAME(_pid)); dead = dead | BIT(_pid); crashes++ }
	od
}
